"""Shared by all tests."""

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import crosspruner  # noqa: F401  (before any test: mends torchvision where it does not fit torch)

# Machines differ and are shared: how long an example takes is no matter of right or wrong.
settings.register_profile("crosspruner", deadline=None)
settings.load_profile("crosspruner")


@pytest.fixture(scope="session")
def read_wandb():
    """`read_wandb(folder)`: all records of the one wandb run in a folder, as wandb reads them."""
    from wandb.util import get_core_path

    def read(folder):
        (file,) = folder.glob("wandb/*run-*/*.wandb")
        command = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-run-file"]
        out = subprocess.run(
            [*command, file], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        return [json.loads(line) for line in out.splitlines()]

    return read


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], Any]:
    """`load_script("report")` imports scripts/report.py as a module."""

    def load(name: str) -> Any:
        path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"scripts_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
