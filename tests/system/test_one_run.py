"""One run, from the command line to everything that its folder promises."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from crosspruner.hardware import Plan
from crosspruner.training import build_model
from crosspruner.training.data import SyntheticData

from .conftest import SMALL

SUMMARY = [
    "model",
    "data",
    "crossbar",
    "mapping",
    "grain",
    "ratio",
    "seed",
    "dense_accuracy",
    "accuracy",
    "accuracy_drop",
    "compute_crossbars_dense",
    "compute_crossbars",
    "compute_saved",
    "total_crossbars_dense",
    "total_crossbars",
    "total_saved",
    "weight_sparsity",
    "phases",
    "wall_seconds",
]

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


@pytest.fixture(scope="module", params=["crossbar", "column"])
def finished(request, train, tmp_path_factory):
    home = tmp_path_factory.mktemp(request.param)
    code, out, err = train(home, *SMALL, f"grain={request.param}", "logger=csv")
    assert code == 0, err
    (run,) = (home / "logs" / "train" / "runs").iterdir()
    return run, out


def test_the_run_folder_is_complete(finished):
    run, _ = finished
    expected = {
        ".hydra",
        "train.log",
        "config_tree.txt",
        "metrics.csv",
        "checkpoints",
        "mapping.json",
        "crossbars.csv",
        "pruned",
        "summary.json",
        "report.html",
        "DONE",
    }
    assert expected <= {entry.name for entry in run.iterdir()}
    assert {"last.ckpt", "best.ckpt"} <= {f.name for f in (run / "checkpoints").iterdir()}
    assert "FAILED" not in {entry.name for entry in run.iterdir()}


def test_the_plan_is_printed_before_training_and_the_table_after(finished):
    _, out = finished
    assert out.index("compute crossbars") < out.index("epoch 1/3") < out.index("kept")


def test_the_summary_is_flat_and_complete(finished):
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    assert set(SUMMARY) <= set(summary)
    assert all(isinstance(v, str | int | float) for v in summary.values())
    assert summary["accuracy_drop"] == pytest.approx(
        summary["dense_accuracy"] - summary["accuracy"]
    )


def test_compute_saved_is_what_a_hand_count_of_the_mapping_gives(finished):
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    plan = json.loads((run / "mapping.json").read_text())
    dense = json.loads((run / "mapping_dense.json").read_text())

    def counted(plan):
        return sum(
            len(layer["blocks"]) * layer["slices"] * layer["row_splits"] for layer in plan["layers"]
        )

    assert counted(plan) == summary["compute_crossbars"]
    assert counted(dense) == summary["compute_crossbars_dense"]
    assert summary["compute_saved"] == pytest.approx(1 - counted(plan) / counted(dense))
    assert abs(summary["compute_saved"] - 0.5) < 0.02


def test_the_layer_table_adds_up(finished):
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    with (run / "crossbars.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["compute"]) for row in rows) == summary["compute_crossbars"]
    assert sum(int(row["compute_dense"]) for row in rows) == summary["compute_crossbars_dense"]


def test_the_pruned_weights_load_into_the_vanilla_model_and_repeat_the_accuracy(finished):
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    data = SyntheticData(image_size=16, num_images=192, batch_size=16)
    data.setup()
    model = build_model("vgg8", data.num_classes, data.image_size, width=0.0625)
    model.load_state_dict(load_file(run / "pruned" / "weights.safetensors"), strict=True)
    model.eval()
    hits = count = 0
    with torch.no_grad():
        for images, labels in data.test_dataloader():
            hits += int((model(images).argmax(dim=1) == labels).sum())
            count += len(labels)
    assert hits / count == pytest.approx(summary["accuracy"])


def test_pruned_blocks_are_exactly_zero(finished):
    run, _ = finished
    weights = load_file(run / "pruned" / "weights.safetensors")
    masks = load_file(run / "pruned" / "masks.safetensors")
    plan = Plan.load(run / "pruned" / "mapping.json")
    assert masks
    for name, mask in masks.items():
        layer = plan.layer(name)
        weight = (
            weights[f"{name}.weight"].flatten(2)
            if weights[f"{name}.weight"].dim() > 2
            else (weights[f"{name}.weight"].unsqueeze(2))
        )
        for unit in range(mask.shape[0]):
            outputs = (
                slice(unit, unit + 1)
                if plan.grain == "column"
                else slice(unit * layer.kout, (unit + 1) * layer.kout)
            )
            for group in range(mask.shape[1]):
                block = weight[outputs, group * layer.kin : (group + 1) * layer.kin]
                assert bool((block != 0).any()) == bool(mask[unit, group])


def test_metrics_are_there_for_every_epoch(finished):
    run, _ = finished
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {
        "train/loss", "train/acc", "val/loss", "val/acc", "prune/phase", "prune/ratio",
        "prune/relax", "prune/mask_churn", "crossbars/compute", "crossbars/saved",
    }  # fmt: skip
    assert names <= set(rows[0])
    assert [r["val/acc"] != "" for r in rows].count(True) == 3
    assert {float(r["prune/phase"]) for r in rows if r["prune/phase"]} == {0.0, 1.0, 2.0}


def test_the_page_is_self_contained(finished):
    run, _ = finished
    page = (run / "report.html").read_text()
    assert "<svg" in page
    assert 'src="http' not in page


@pytest.mark.slow
def test_a_run_without_any_epoch_prunes_at_once(train, tmp_path):
    untrained = ("schedule=from_dense", "schedule.finetune_epochs=0", "procedure=layerwise")
    small = [text for text in SMALL if not text.startswith(("schedule.", "solver."))]
    code, _, err = train(tmp_path, *small, *untrained, "ratio=0.6", "logger=csv")
    assert code == 0, err
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["compute_saved"] == pytest.approx(0.6, abs=0.05)
    assert summary["accuracy"] == summary["oneshot_accuracy"]
    assert summary["dense_accuracy"] is not None
    assert 0 <= summary["val_accuracy"] <= 1
