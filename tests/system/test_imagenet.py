"""data=imagenet from the command line: a file of weights in, timm's own accuracy out."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ..training.test_imagenet_data import (
    CLASSES,
    folder,  # noqa: F401  (a fixture)
    timms_batches,
    timms_count,
    with_opinions,
)
from .conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]

NAME = "test_resnet.r160_in1k"


def test_dense_and_pruned_accuracy_are_timms(train, folder, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    network = timm.create_model(NAME, num_classes=len(CLASSES))
    batches = list(timms_batches(folder, network, 8))
    network = with_opinions(network, batches)
    save_file(network.state_dict(), tmp_path / "dense.safetensors")
    command = (
        *("data=imagenet", f"data.dir={folder}", "model=timm", f"model.name={NAME}"),
        *("model.weights=dense.safetensors", "data.val_fraction=0.34", "data.num_workers=0"),
        *("data.batch_size=8", "logger=csv", "crossbar=64x64"),
    )
    total = 4 * len(CLASSES)
    runs = tmp_path / "logs" / "train" / "runs"

    code, out, err = train(tmp_path, *command, "ratio=0", "procedure=layerwise", "schedule=none")
    assert code == 0, err
    assert "image_size=(160, 160)" in out
    assert "epoch " not in out
    (measured,) = runs.iterdir()
    summary = json.loads((measured / "summary.json").read_text())
    dense = timms_count(network, batches)
    assert summary["accuracy"] == pytest.approx(dense / total)

    fewer = ("ratio=0.3", "solver=magnitude", "schedule=from_dense")
    short = ("schedule.prune_epochs=1", "schedule.finetune_epochs=1")
    code, _, err = train(tmp_path, *command, *fewer, *short)
    assert code == 0, err
    (run,) = set(runs.iterdir()) - {measured}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["dense_accuracy"] == pytest.approx(dense / total)
    network.load_state_dict(load_file(run / "pruned" / "weights.safetensors"))
    assert summary["accuracy"] == pytest.approx(timms_count(network, batches) / total)


def test_a_hub_out_of_reach_is_told_of_in_one_line(tmp_path, clean_environment, folder):  # noqa: F811
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), "data=imagenet", f"data.dir={folder}"),
            *("data.val_fraction=0.34", "model=timm", f"model.name={NAME}"),
            "model.pretrained=true",
        ],
        cwd=tmp_path,
        env={**clean_environment, **nobody},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert "http://127.0.0.1:9 cannot be reached" in line
    assert "model.weights=FILE" in line
