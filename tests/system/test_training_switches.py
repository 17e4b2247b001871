"""Every switch of training at once: masks hold, the budget is exact, a killed run goes on alike."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from .conftest import ROOT, SMALL
from .test_stop_and_resume import epochs_done, run_folders, wait_for

pytestmark = pytest.mark.slow

ALL = (
    *SMALL,
    "logger=csv",
    "schedule.prune_epochs=3",
    "schedule.finetune_epochs=4",
    "training.label_smoothing=0.1",
    "training.mixup=0.2",
    "training.cutmix=1.0",
    "training.mix_share=0.8",
    "training.ema=0.9",
    "distill=0.5",
    "training.compile=true",
    "training.compile_backend=aot_eager",
    "training.channels_last=true",
    "trainer.precision=bf16-mixed",
    "trainer.accelerator=cpu",
)


def test_all_switches_together_killed_resumed_and_judged_again(
    train, start, tmp_path, clean_environment
):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    code, _, err = train(straight, *ALL)
    assert code == 0, err
    (whole,) = run_folders(straight)

    process = start(broken, *ALL)
    wait_for(lambda: epochs_done(broken) >= 3)  # 1 dense, 3 pruning, 4 fine-tuning epochs
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (killed,) = run_folders(broken)
    assert not (killed / "DONE").exists()
    code, _, err = train(broken, *ALL, f"ckpt_path={killed / 'checkpoints' / 'last.ckpt'}")
    assert code == 0, err
    resumed = run_folders(broken)[1]
    for file in ("masks", "weights"):
        ours = load_file(resumed / "pruned" / f"{file}.safetensors")
        theirs = load_file(whole / "pruned" / f"{file}.safetensors")
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), key

    summary = json.loads((whole / "summary.json").read_text())
    assert summary["compute_crossbars"] == 350  # of 700, at ratio 0.5
    assert summary["compute_crossbars_dense"] == 700
    best = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    pruned = load_file(whole / "pruned" / "weights.safetensors")
    # What is saved is the average that was validated best, not the weights training went on from.
    for key, value in pruned.items():
        assert torch.equal(best["state_dict"][f"net.{key}"], value), key
    assert not torch.equal(best["trained_state"]["features.3.weight"], pruned["features.3.weight"])

    # Judged again: test accuracies to the last image, and zeros wherever the masks prune.
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), f"run_dir={whole}"]
    environment = {**clean_environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_switches_on_two_devices(train, tmp_path):
    code, _, err = train(tmp_path, *ALL, "trainer.devices=2", "training.compile=false")
    assert code == 0, err
    (run,) = run_folders(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["compute_crossbars"] == 350
    pruned = load_file(run / "pruned" / "weights.safetensors")
    masks = load_file(run / "pruned" / "masks.safetensors")
    for name, mask in masks.items():
        assert not bool(mask.bool().all())
        assert bool((pruned[f"{name}.weight"] == 0).any())
