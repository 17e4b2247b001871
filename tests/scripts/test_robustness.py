"""The sweep over a run folder: every effect, a row per chip, picture and table."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from crosspruner.errors import RunFolderError
from crosspruner.hardware import Crossbar, plan_model
from crosspruner.pruning.saving import save_pruned
from crosspruner.run_networks import _check_same_data
from crosspruner.training import build_model


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("robustness")


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


@pytest.fixture
def copied(run, tmp_path):
    """Makes a copy of the run at a place, its configuration changed; at ratio 0 its own network."""

    def copy(place, **changes):
        folder = tmp_path / place
        shutil.copytree(run, folder)
        config = yaml.safe_load((folder / ".hydra/config.yaml").read_text())
        for key, value in changes.items():
            config[key] = config[key] | value if isinstance(value, dict) else value
        (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
        return folder

    return copy


def retrain(folder):
    """Give a run a dense network of its own."""
    file = folder / "checkpoints/dense.safetensors"
    save_file({key: value + 1 for key, value in load_file(file).items()}, file)


def names(script, *folders, dense=True):
    return [subject.name for subject in script.read_runs(folders, dense)[1]]


def test_networks_of_several_runs_carry_what_tells_their_folders_apart(script, copied):
    runs = [copied(place) for place in ("a/0", "b/0", "b/1")]
    pruned = ["pruned 50% a/0", "pruned 50% b/0", "pruned 50% 1"]
    assert names(script, *runs, dense=False) == pruned
    assert names(script, *runs) == ["dense", *pruned], "one dense network, shared by all"
    assert names(script, runs[0], runs[0]) == ["dense", "pruned 50%"], "given twice, judged once"


def test_every_dense_network_of_several_runs_is_judged(script, copied):
    first, second, third = (copied(place) for place in ("a/0", "b/0", "b/1"))
    retrain(second)
    assert names(script, first, second, third) == [
        "dense a/0", "pruned 50% a/0", "dense b/0", "pruned 50% b/0", "pruned 50% 1",
    ]  # fmt: skip
    unpruned = copied("c/0", ratio=0.0)
    save_file({**load_file(second / "checkpoints/dense.safetensors")},
              unpruned / "pruned/weights.safetensors")  # fmt: skip
    assert names(script, first, unpruned) == ["dense a/0", "pruned 50% a/0", "dense c/0"]


def test_runs_of_other_architectures_keep_their_own(script, copied, run):
    other = copied("other", model={"width": 0.125})
    model = build_model("vgg8", 10, (16, 16), width=0.125)
    plan = plan_model(model, (3, 16, 16), Crossbar(32, 32, differential=True), "folded")
    save_pruned(other / "pruned", model, plan, {})
    shutil.copy(other / "pruned/weights.safetensors", other / "checkpoints/dense.safetensors")
    for name in ("mapping.json", "mapping_dense.json"):
        plan.save(other / name)
    found = script.read_runs((run, other), True)[1]
    widths = [next(iter(subject.network.parameters())).shape[0] for subject in found]
    assert widths[2:] == [2 * width for width in widths[:2]]
    assert len({subject.name for subject in found}) == 4


def test_runs_on_other_data_are_refused_in_one_line(script, copied, run):
    names(script, run, copied("seed", data={"seed": 3, "batch_size": 8}))
    other = copied("noise", data={"noise": 2.0})
    result = CliRunner().invoke(script.main, [str(run), str(other)])
    assert result.exit_code == 1
    message = f"error: {other} has data.noise=2.0 where {run} has nothing"
    assert result.output.startswith(message), result.output
    assert result.output.count("\n") == 1


def test_a_folder_is_the_same_however_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    configs = {
        Path(str(run)): OmegaConf.create({"data": {"dir": typed, "image_size": 32}})
        for run, typed in enumerate(("images", "./images", "~/images", str(tmp_path / "images")))
    }
    _check_same_data(configs)
    configs[Path("other")] = OmegaConf.create({"data": {"dir": "pictures", "image_size": 32}})
    with pytest.raises(RunFolderError, match=r"other has data.dir=.*pictures where 0 has .*images"):
        _check_same_data(configs)


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
