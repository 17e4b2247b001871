# make help
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread a test process: two processes on two cores beat four threads on them
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
TESTS ?= tests
SMOKE ?= logs/smoke
SWEEP ?= $(shell ls -d logs/*/multiruns/* 2>/dev/null | tail -n 1)

.PHONY: help install demo test test-slow lint type sweep report reproduce-smoke clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(VENV)/.installed  ## Make .venv and install crosspruner in it

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev,dashboard,launchers,search,export,channels]'
	touch $@

demo: install  ## Prune a small VGG on the embedded digits: table, summary, report
	$(BIN)/python train.py experiment=demo

test: $(VENV)/.installed-dev  ## Run the fast tests
	$(PYTEST) -m "not slow and not network and not gpu"

test-slow: $(VENV)/.installed-dev  ## Run the long tests (TESTS=tests/system for some of them)
	$(PYTEST) -m "slow and not network and not gpu" $(TESTS)

lint: $(VENV)/.installed-dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.installed-dev  ## Check types
	$(BIN)/mypy

sweep: install  ## Sweep two ratios and both grains on the digits
	$(BIN)/python train.py -m experiment=demo ratio=0.3,0.6 grain=crossbar,column

report: install  ## Write the report of the newest sweep (or SWEEP=folder)
	$(BIN)/python scripts/report.py $(SWEEP)

reproduce-smoke: $(VENV)/.installed-dev  ## Race every method on the digits, as scripts/reproduce.sh does on CIFAR-10
	PYTHON=$(BIN)/python OUT=$(SMOKE)/runs PAGE=$(SMOKE)/race.md NETWORKS=vgg8 SEEDS=0 RATIOS=0.6 \
		WIDTH=0.125 DENSE_EPOCHS=4 EPOCHS=1 CLAIM_RATIOS=0.64 SOLVERS="magnitude lgd_rpp" \
		OVERRIDES="crossbar=128x128 data.batch_size=64 ++procedure.calibration_images=128 ++procedure.positions=32" \
		scripts/reproduce.sh digits

clean:  ## Remove caches and build products; logs and data stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
