"""Shared by all tests."""

import json
import subprocess

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
