"""A sweep from the command line."""

import pandas as pd

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


def test_a_failing_job_leaves_the_others_alone(train, tmp_path):
    code, _, err = train(tmp_path, "-m", *SMALL, "logger=csv", "ratio=0.3,0.99")
    assert code == 1
    assert "largest feasible ratio" in err
    (sweep,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    assert (sweep / "0" / "DONE").exists()
    assert "largest feasible ratio" in (sweep / "1" / "FAILED").read_text()
    table = pd.read_csv(sweep / "summary.csv")
    assert list(table["status"]) == ["done", "failed"]
