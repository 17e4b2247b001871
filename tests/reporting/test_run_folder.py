import json

import numpy as np
import pytest
import torch

from crosspruner.errors import RunFolderError
from crosspruner.hardware.planning import plan_model
from crosspruner.reporting.config_diff import flatten
from crosspruner.reporting.layers import write_layer_table
from crosspruner.reporting.run_files import LAYER_COLUMNS
from crosspruner.reporting.run_folder import RunFolder, find_runs, is_run_folder


def test_reads_every_part(run_dir):
    run = RunFolder(run_dir)
    assert run.status == "done"
    assert run.title == "vgg8 on digits"
    assert run.summary == json.loads((run_dir / "summary.json").read_text())
    assert set(LAYER_COLUMNS) <= set(run.layers.columns)
    assert run.layers["compute"].sum() == run.summary["compute_crossbars"]
    assert run.masks["features.3"].dtype == bool
    assert run.masks["features.3"].shape == (16, 8)
    assert run.masks["features.3"].sum(axis=1).tolist() == [4] * 16
    assert run.overrides[0] == "model=vgg8"
    assert run.choices["solver"] == "lgd_rpp"
    assert run.problems == []


def test_facts_come_from_summary_then_choices_then_config(make_run, tmp_path):
    run = RunFolder(make_run(tmp_path / "a", config={"procedure": "layerwise"}))
    assert run.fact("ratio") == 0.5  # summary
    assert run.fact("solver") == "lgd_rpp"  # choices
    assert run.fact("procedure") == "layerwise"  # config, a plain value
    assert run.fact("nothing", "default") == "default"
    failed = RunFolder(make_run(tmp_path / "b", status="failed"))
    assert failed.fact("model") == "vgg8"
    assert failed.fact("seed") == 0


def test_seed_zero_is_a_fact(make_run, tmp_path):
    assert RunFolder(make_run(tmp_path / "a", seed=0)).fact("seed", 7) == 0


@pytest.mark.parametrize(
    ("marks", "status"),
    [(["DONE"], "done"), (["FAILED"], "failed"), (["DONE", "FAILED"], "done"), ([], "unfinished")],
)
def test_status(make_run, tmp_path, marks, status):
    path = make_run(tmp_path / "run", status="unfinished")
    for mark in marks:
        (path / mark).write_text("BudgetError: no\nmore")
    run = RunFolder(path)
    assert run.status == status
    assert run.message == ("BudgetError: no" if status == "failed" else "")


def test_broken_parts_are_empty_and_named(run_dir):
    (run_dir / "summary.json").write_text('{"model": "vg')
    (run_dir / ".hydra/config.yaml").write_text("a: [1, 2\nb: }")
    (run_dir / "crossbars.csv").write_text("")
    (run_dir / "pruned/masks.safetensors").write_bytes(b"\x08\x00\x00")
    run = RunFolder(run_dir)
    assert run.summary == {}
    assert run.config == {}
    assert run.layers.empty
    assert run.masks == {}
    assert [problem.split(" cannot be read: ")[0] for problem in run.problems] == [
        "summary.json",
        ".hydra/config.yaml",
        "crossbars.csv",
        "pruned/masks.safetensors",
    ]


def test_metrics_with_a_torn_last_line(run_dir):
    whole = RunFolder(run_dir).metrics
    with (run_dir / "metrics.csv").open("a") as file:
        file.write("6,279,0.1,0.9")
    torn = RunFolder(run_dir).metrics
    assert len(torn) == len(whole) + 1
    assert torn["step"].iloc[-1] == 279
    with (run_dir / "metrics.csv").open("a") as file:
        file.write("\n6,280,abc")
    last = RunFolder(run_dir).metrics.iloc[-1]
    assert np.isnan(last["train/loss"])
    assert last["step"] == 280


@pytest.mark.parametrize("name", ["mapping.json", "mapping_dense.json"])
def test_layers_of_an_unfinished_run_come_from_its_plan(make_run, tmp_path, name):
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 1))
    plan = plan_model(model, (16, 8, 8), crossbar="64x64")
    path = make_run(tmp_path / "run", status="unfinished")
    plan.save(path / name)
    layers = RunFolder(path).layers
    assert layers["layer"].tolist() == ["0", "1"]
    assert layers["compute"].sum() == plan.compute_crossbars
    (path / name).write_text("{}")
    run = RunFolder(path)
    assert run.layers.empty
    assert len(run.problems) == 1
    write_layer_table(plan, path / "crossbars.csv")
    again = RunFolder(path).layers
    assert again["compute"].tolist() == layers["compute"].tolist()
    assert again["utilisation"].tolist() == pytest.approx(layers["utilisation"].tolist())


def test_missing_parts_are_no_problem(tmp_path):
    (tmp_path / "FAILED").write_text("")
    run = RunFolder(tmp_path)
    assert (run.summary, run.config, run.masks, run.overrides, run.choices) == ({}, {}, {}, [], {})
    assert run.metrics.empty
    assert run.layers.empty
    assert run.title == tmp_path.name
    assert run.problems == []


def test_not_a_run_folder(tmp_path):
    assert not is_run_folder(tmp_path)
    with pytest.raises(RunFolderError, match="is not a run folder: none of"):
        RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match="is not a folder"):
        RunFolder(tmp_path / "nope")


def test_find_runs_in_natural_order(make_run, tmp_path):
    for number in (10, 2, 0):
        make_run(tmp_path / "stamp" / str(number), status="unfinished")
    (tmp_path / "stamp/.submitit/3").mkdir(parents=True)
    (tmp_path / "stamp/.submitit/3/DONE").write_text("")  # hidden folders hold no runs
    (tmp_path / "stamp/0/checkpoints/DONE").parent.mkdir()
    assert [run.path.name for run in find_runs(tmp_path)] == ["0", "2", "10"]
    assert [run.path.name for run in find_runs(tmp_path / "stamp/2")] == ["2"]


def test_find_runs_in_an_empty_folder(tmp_path):
    with pytest.raises(RunFolderError, match="No run was found in"):
        find_runs(tmp_path)
    with pytest.raises(RunFolderError, match="is not a folder"):
        find_runs(tmp_path / "nope")


def test_flatten():
    tree = {"a": {"b": 1, "c": {"d": [1, {"x": 2}]}}, "e": None, "f": {}}
    assert flatten(tree) == {"a.b": 1, "a.c.d": [1, {"x": 2}], "e": None, "f": {}}
