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
