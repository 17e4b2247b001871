"""A run on a device, from the command line: judged on its chips, trained with their noise."""

import json

import pytest

from .conftest import SMALL

pytestmark = pytest.mark.slow


def test_a_run_on_a_device(train, tmp_path):
    code, out, err = train(
        tmp_path, *SMALL, "logger=csv", "crossbar.differential=true", "device=rram_typical",
        "device.seeds=2", "device.array_images=8", "device.train=true",
    )  # fmt: skip
    assert code == 0, err
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["device"] == "rram_typical"
    assert summary["device_chips"] == 2
    assert 0 <= summary["device_accuracy"] <= 1
    assert summary["device_accuracy_spread"] >= 0
    assert summary["energy_uj"] < summary["energy_uj_dense"]
    assert "on rram_typical" in out
    page = (run / "report.html").read_text()
    assert "On rram_typical" in page
    assert "What an image costs" in page


def test_a_device_that_does_not_fit_the_crossbar_is_refused_before_training(train, tmp_path):
    code, out, err = train(tmp_path, *SMALL, "logger=csv", "device.weight_bits=12")
    assert code == 1
    assert "set crossbar.weight_bits=12" in err
    assert "epoch 1/3" not in out


def test_noise_of_a_device_without_any_is_refused(train, tmp_path):
    code, _, err = train(tmp_path, *SMALL, "logger=csv", "device.train=true")
    assert code == 1
    assert "does nothing to weights" in err


def test_a_finished_run_is_trained_further_with_noise(train, tmp_path):
    same = (*SMALL, "logger=csv", "crossbar.differential=true")
    code, _, err = train(tmp_path, *same, "procedure=layerwise", "hydra.run.dir=first")
    assert code == 0, err
    further = (
        *same, "procedure=held", "procedure.run=first", "hydra.run.dir=second",
        "device.weight_bits=4", "device.weight_range=mse", "device.norm_images=32",
        "device.train=true",
    )  # fmt: skip
    code, _, err = train(tmp_path, *further)
    assert code == 1
    assert "type schedule=from_dense" in err
    first = json.loads((tmp_path / "first" / "summary.json").read_text())
    further = (*(o for o in further if "dense_epochs" not in o), "schedule=from_dense")
    code, _, err = train(tmp_path, *further, f"ratio={first['compute_saved']:.3f}")
    assert code == 0, err
    second = json.loads((tmp_path / "second" / "summary.json").read_text())
    for same_in_both in ("compute_crossbars", "total_crossbars", "dense_accuracy"):
        assert second[same_in_both] == first[same_in_both]
    assert second["oneshot_accuracy"] == first["accuracy"]  # it begins where the first one ended
