"""Distributed runs from the command line, on the CPU."""

import json

import pytest
from safetensors.torch import load_file

from .conftest import SMALL

pytestmark = pytest.mark.slow

TWO = ("trainer.devices=2", "trainer.accelerator=cpu", "logger=csv")


def check(run):
    summary = json.loads((run / "summary.json").read_text())
    assert (run / "DONE").exists()
    assert not (run / "FAILED").exists()
    assert abs(summary["compute_saved"] - 0.5) < 0.02
    assert load_file(run / "pruned" / "weights.safetensors")
    assert (run / "train.log").read_text().count("epoch 3/3") == 1  # one of them speaks for both


def test_one_run_on_two_devices(train, tmp_path):
    code, out, err = train(tmp_path, *SMALL, *TWO)
    assert code == 0, err
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    check(run)
    assert out.count("compute crossbars ->") == 1


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_in_shared_processes_is_refused_with_the_way_out(train, tmp_path, launcher):
    code, _, err = train(tmp_path, "-m", *SMALL, *TWO, "ratio=0.3", f"hydra/launcher={launcher}")
    assert code == 1
    assert "hydra/launcher=submitit_local" in err


def test_the_way_out_a_sweep_of_distributed_jobs(train, tmp_path):
    code, _, err = train(
        tmp_path, "-m", *SMALL, *TWO, "grain=column,crossbar", "hydra/launcher=submitit_local"
    )
    assert code == 0, err
    (sweep,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    for job in "01":
        check(sweep / job)
    assert (sweep / "DONE").exists()
