"""The sweep over a run folder: every effect, a row per chip, picture and table."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner

from crosspruner.hardware import Crossbar, plan_model
from crosspruner.pruning.saving import save_pruned
from crosspruner.training import build_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("robustness", ROOT / "scripts/robustness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as an experiment leaves it, without the training."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model("vgg8", 10, (16, 16), width=0.0625)
    plan = plan_model(model, (3, 16, 16), Crossbar(32, 32, differential=True), "folded")
    save_pruned(folder / "pruned", model, plan, {})
    save_pruned(folder / "checkpoints", model, plan, {})
    (folder / "checkpoints/weights.safetensors").rename(folder / "checkpoints/dense.safetensors")
    for name in ("mapping.json", "mapping_dense.json"):
        plan.save(folder / name)
    (folder / ".hydra").mkdir()
    config = {
        "ratio": 0.5,
        "model": {
            "family": "crosspruner", "name": "vgg8", "width": 0.0625, "weights": None,
            "pretrained": False,
        },
        "data": {
            "_target_": "crosspruner.training.data.SyntheticData", "image_size": 16,
            "num_images": 192, "batch_size": 16,
        },
    }  # fmt: skip
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_sweep_writes_a_row_per_chip_a_picture_and_a_table(script, run):
    result = CliRunner().invoke(
        script.main,
        [
            str(run), "--bits", "4", "--sigmas", "0,0.1", "--faults", "0.01", "--adc-bits", "6",
            "--seeds", "2", "--images", "8", "--array-seeds", "1", "--array-images", "4",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = pd.read_csv(run / "robustness.csv")
    assert set(table["network"]) == {"dense", "pruned 50%"}
    points = table.groupby(["network", "effect", "value"]).size()
    assert points["dense"].to_dict() == {
        ("adc", 6.0): 2,
        ("bits", 4.0): 2,
        ("faults", 0.01): 1,
        ("sigma", 0.0): 2,
        ("sigma", 0.1): 2,
    }
    assert set(table[table["effect"] == "bits"]["images"]) == {8}
    assert set(table[table["effect"] == "faults"]["images"]) == {4}
    assert (run / "robustness.png").is_file()
    assert (run / "robustness.svg").is_file()
    assert "sigma" in result.output


def test_effects_can_be_chosen_and_the_dense_network_left_out(script, run, tmp_path):
    arguments = [str(run), "--effects", "bits", "--bits", "8", "--no-dense", "--out", str(tmp_path)]
    result = CliRunner().invoke(script.main, [*arguments, "--images", "4", "--seeds", "1"])
    assert result.exit_code == 0, result.output
    assert pd.read_csv(tmp_path / "robustness.csv")["network"].tolist() == ["pruned 50%"]


def test_networks_of_several_runs_carry_their_folders_names(script, run, tmp_path):
    arguments = [str(run), str(run), "--effects", "bits", "--bits", "8", "--out", str(tmp_path)]
    result = CliRunner().invoke(script.main, [*arguments, "--images", "4", "--seeds", "1"])
    assert result.exit_code == 0, result.output
    name = f"pruned 50% {run.name}"
    assert pd.read_csv(tmp_path / "robustness.csv")["network"].tolist() == ["dense", name, name]


@pytest.mark.parametrize(
    ("kind", "shares"), [("both", (0.005, 0.005)), ("off", (0.01, 0)), ("on", (0, 0.01))]
)
def test_stuck_cells_are_of_the_kind_asked_for(script, kind, shares):
    options = script.main.make_context("robustness", [".", "--stuck", kind]).params
    options |= {"effects": ["faults"], "faults": [0.01]}
    ((_, _, settings),) = script.settings_of(options)
    assert (settings.stuck_off, settings.stuck_on) == shares


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--effects", "heat"], "--effects heat is unknown"), (["--bits", "1"], "device.weight_bits")],
)
def test_wrong_input_gets_one_line(script, run, arguments, message):
    result = CliRunner().invoke(script.main, [str(run), *arguments])
    assert result.exit_code == 1
    assert message in str(result.output)


def test_a_run_that_is_not_finished_is_named(script, run, tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").write_text((run / ".hydra/config.yaml").read_text())
    result = CliRunner().invoke(script.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "has no pruned/weights.safetensors" in result.output
