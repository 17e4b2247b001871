"""A sweep leaves the process that runs it as it found it."""

import json
import subprocess
import sys

import pytest

from .conftest import ROOT, SMALL

pytestmark = pytest.mark.slow

PROBE = """
import json, os, runpy, signal, sys, threading
os.environ["HYDRA_FULL_ERROR"] = "1"  # train.py sets it itself
import sklearn.datasets, torch, crosspruner.experiment  # libraries set variables when imported

def state():
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": {str(s): str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)},
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }

before = state()
sys.argv = [sys.argv[1], *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
after = state()
import wandb
alive = [t.name for t in threading.enumerate() if t.name == "sweep-progress"]
print("STATE" + json.dumps([before, after, wandb.run is None, alive]))
"""


def test_offline_wandb_runs_of_a_sweep_have_no_side_effect_on_the_process(
    clean_environment, tmp_path
):
    command = ("-m", *SMALL, "ratio=0.3,0.6", "trainer.deterministic=true,false")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(ROOT / "train.py"), *command],
        cwd=tmp_path,
        env={**clean_environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (text for text in done.stdout.splitlines() if text.startswith("STATE"))
    before, after, wandb_is_closed, alive = json.loads(line.removeprefix("STATE"))
    changed = before["environment"].items() ^ after["environment"].items()
    assert changed == set()
    assert after == before
    assert wandb_is_closed
    assert alive == []
    assert len(list(tmp_path.glob("logs/train/multiruns/*/*/wandb/offline-run-*"))) == 4
