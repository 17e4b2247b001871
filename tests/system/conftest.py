"""Runs the commands that users type, each in a folder of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Seconds of training: 16x16 images, a thin VGG8, crossbars small enough to have much to prune.
SMALL = (
    "data=synthetic",
    "data.image_size=16",
    "data.num_images=192",
    "data.batch_size=16",
    "model.width=0.0625",
    "crossbar.rows=16",
    "crossbar.cols=16",
    "schedule.dense_epochs=1",
    "schedule.prune_epochs=1",
    "schedule.finetune_epochs=1",
    "solver.moment_rows=64",
    "trainer.log_every_n_steps=2",
)


@pytest.fixture(scope="session")
def clean_environment():
    """The environment of a newcomer: no account, no network needed, one thread."""
    dropped = ("WANDB_", "HYDRA_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "OMP_NUM_THREADS": "1", "WANDB_API_KEY": "", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="session")
def start(clean_environment):
    """Start `python train.py ...` in a folder and return the process."""

    def start(folder, *overrides, **options):
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *overrides],
            cwd=folder,
            env=clean_environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


def stop_group(process):
    """Kill a process that was started in a session of its own, and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def report(clean_environment):
    """Run `python scripts/report.py FOLDER`; returns the path of the page."""

    def report(folder):
        command = [sys.executable, str(ROOT / "scripts" / "report.py"), str(folder)]
        environment = {**clean_environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())

    return report


@pytest.fixture(scope="session")
def train(start):
    """Run `python train.py ...` to its end; returns (exit code, stdout, stderr)."""

    def train(folder, *overrides):
        process = start(folder, *overrides)
        out, err = process.communicate(timeout=900)
        return process.returncode, out, err

    return train
