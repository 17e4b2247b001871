"""A sweep from the command line."""

import time

import pandas as pd
import pytest

from .conftest import SMALL


def test_a_sweep_leaves_a_folder_per_job_and_one_table(train, tmp_path):
    code, _, err = train(
        tmp_path, "-m", *SMALL, "trainer.max_epochs=2", "ratio=0.3,0.6", "grain=crossbar,column"
    )
    assert code == 0, err
    (sweep,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    for job in "0123":
        assert (sweep / job / "DONE").exists()
        assert (sweep / job / "report.html").exists()
    table = pd.read_csv(sweep / "summary.csv")
    assert len(table) == 4
    assert sorted(zip(table["ratio"], table["grain"], strict=True)) == [
        (0.3, "column"), (0.3, "crossbar"), (0.6, "column"), (0.6, "crossbar"),
    ]  # fmt: skip
    assert ((table["compute_saved"] - table["ratio"]).abs() < 0.02).all()
    # each job has a wandb run of its own, none of them online
    offline = sorted(sweep.glob("*/wandb/offline-run-*"))
    assert len({run.name.split("-")[-1] for run in offline}) == 4


@pytest.mark.slow
def test_a_failing_job_leaves_the_others_alone(train, tmp_path):
    code, _, err = train(tmp_path, "-m", *SMALL, "logger=csv", "ratio=0.3,0.99")
    assert code == 1
    assert "largest feasible ratio" in err
    (sweep,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    assert (sweep / "0" / "DONE").exists()
    assert "largest feasible ratio" in (sweep / "1" / "FAILED").read_text()
    table = pd.read_csv(sweep / "summary.csv")
    assert list(table["status"]) == ["done", "failed"]


@pytest.mark.slow
def test_a_killed_sweep_typed_again_goes_on_and_ends_alike(train, start, tmp_path):
    command = ("-m", *SMALL, "logger=csv", "schedule.prune_epochs=3", "ratio=0.3,0.6")
    command = (*command, "grain=crossbar,column")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    code, _, err = train(straight, *command)
    assert code == 0, err

    process = start(broken, *command)
    log = "logs/train/multiruns/*/1/train.log"
    deadline = time.monotonic() + 300
    while not any("epoch 2/" in file.read_text() for file in broken.glob(log)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (sweep,) = (broken / "logs" / "train" / "multiruns").iterdir()
    first = (sweep / "0" / "summary.json").stat().st_mtime_ns
    assert not (sweep / "3").exists()

    code, _, err = train(broken, *command)
    assert code == 0, err
    assert [sweep] == list((broken / "logs" / "train" / "multiruns").iterdir())
    assert (sweep / "0" / "summary.json").stat().st_mtime_ns == first  # not run again
    (whole,) = (straight / "logs" / "train" / "multiruns").iterdir()
    same = ["ratio", "grain", "accuracy", "dense_accuracy", "compute_crossbars", "status"]
    ours, theirs = (pd.read_csv(folder / "summary.csv")[same] for folder in (sweep, whole))
    pd.testing.assert_frame_equal(ours, theirs)
    steps = pd.read_csv(sweep / "1" / "metrics.csv")["step"]
    assert steps.is_monotonic_increasing
