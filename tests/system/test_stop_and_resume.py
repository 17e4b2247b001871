"""Runs that are stopped, kindly or not."""

import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from .conftest import SMALL

pytestmark = pytest.mark.slow

# A quarter of a second an epoch: enough of them that a busy machine stops it in time.
LONG = (*SMALL, "schedule.prune_epochs=16", "logger=csv")


def run_folders(home):
    return sorted((home / "logs" / "train" / "runs").iterdir())


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def epochs_done(home):
    logs = list(home.glob("logs/train/runs/*/train.log"))
    return logs[0].read_text().count("epoch ") if logs else 0


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_killed_in_the_prune_phase_and_resumed_ends_with_the_same_masks(
    train, start, tmp_path, grain
):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    code, _, err = train(straight, *LONG, f"grain={grain}")
    assert code == 0, err

    process = start(broken, *LONG, f"grain={grain}")
    wait_for(lambda: epochs_done(broken) >= 3)  # 1 dense and 16 prune epochs
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (killed,) = run_folders(broken)
    assert not (killed / "DONE").exists()
    last = killed / "checkpoints" / "last.ckpt"
    assert 2 <= torch.load(last, weights_only=True)["epoch"] + 1 < 17

    code, _, err = train(broken, *LONG, f"grain={grain}", f"ckpt_path={last}")
    assert code == 0, err
    resumed = run_folders(broken)[1]
    (whole,) = run_folders(straight)
    for file in ("masks", "weights"):
        ours = load_file(resumed / "pruned" / f"{file}.safetensors")
        theirs = load_file(whole / "pruned" / f"{file}.safetensors")
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), key
    assert (resumed / "checkpoints" / "dense.safetensors").exists()


def test_ctrl_c_keeps_the_checkpoint_the_metrics_and_the_reason(start, tmp_path):
    process = start(tmp_path, *LONG, "schedule.finetune_epochs=100")
    wait_for(lambda: epochs_done(tmp_path) >= 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert "Traceback" not in err
    (run,) = run_folders(tmp_path)
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert (run / "metrics.csv").stat().st_size > 0
    assert "interrupted" in (run / "FAILED").read_text()
    assert not (run / "DONE").exists()
