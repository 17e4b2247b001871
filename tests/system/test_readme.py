"""Every command of the README is one that the program understands, and that can be met."""

import itertools
import re
import shlex

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from crosspruner.assemble import network_of, open_data
from crosspruner.config import run_settings
from crosspruner.hardware import plan_model
from crosspruner.pruning.budget import prunable_layers

from .conftest import ROOT


def typed():
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    return [line.strip() for line in lines if line.startswith("python train.py")]


def test_the_readme_shows_commands():
    assert len(typed()) >= 8


# What a file leaves open, and a search fills in for each trial
OPEN = {"hparams_search=layer_ratios": ["budget.layer_ratios={features.*:0.5}"]}


def jobs(command):
    """The overrides of each run that a command starts; of several ratios the largest will do."""
    overrides = [word for word in shlex.split(command)[2:] if word != "-m"]
    overrides += [one for word in overrides for one in OPEN.get(word, [])]
    keys, values = zip(*(word.split("=", 1) for word in overrides), strict=True)
    values = [value.split(",") for value in values]
    values = [[max(v, key=float)] if k == "ratio" else v for k, v in zip(keys, values, strict=True)]
    for chosen in itertools.product(*values):
        yield [f"{key}={value}" for key, value in zip(keys, chosen, strict=True)]


@pytest.fixture(scope="module")
def digits():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return open_data(compose("config"))


@pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher/.*ConfigStore schema")
@pytest.mark.parametrize("command", [c for c in typed() if "--help" not in c])
def test_the_overrides_compose_and_the_ratio_can_be_met(command, digits):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for overrides in jobs(command) if "=" in command else [[]]:
            config = compose("config", overrides)
            settings = run_settings(config)
            if not any(override.startswith("data=") for override in overrides):
                assert_feasible(config, settings, digits)
    GlobalHydra.instance().clear()


def assert_feasible(config, settings, data):
    """Plan the network, without weights, and divide the budget: it raises if it cannot be met."""
    with torch.device("meta"):
        network = network_of(config, data)
    how = (settings.crossbar, settings.mapping, settings.grain.name)
    shape = (data.in_channels, *data.image_size)
    plan = plan_model(network, shape, *how, settings.include, settings.exclude)
    layouts = prunable_layers(plan, settings.grain.name)
    settings.budget.first_blocks(plan, layouts, settings.ratio)


def test_every_make_target_of_the_readme_exists():
    targets = re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
