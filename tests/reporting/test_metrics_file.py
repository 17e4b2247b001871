"""metrics.csv across a stop: rows before the checkpoint stay, later ones are written anew."""

import pandas as pd
import pytest

from crosspruner.reporting.metrics_file import MetricsFile


def log(folder, steps, extra=None):
    logger = MetricsFile(folder)
    for step in steps:
        logger.log_metrics({"train/loss": step / 10, **(extra or {})}, step)
        logger.save()


def test_a_new_run_starts_a_new_file(tmp_path):
    log(tmp_path, [0, 10])
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [0, 10]


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path):
    log(tmp_path, [0, 10, 20, 30])
    log(tmp_path, [20, 40], extra={"val/acc": 0.5})
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["step"].tolist() == [0, 10, 20, 40]
    assert table["val/acc"].isna().tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "torn", ["1,20,0.5,0.9\n1,3", "1,20,0.5,0.9\n1,", "1,20,0.5,0.9\n1,x,0.4,0.8\n"]
)
def test_a_half_written_line_is_dropped(tmp_path, torn):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,train/loss,val/acc\n0,10,0.7,0.8\n" + torn)
    log(tmp_path, [25])
    table = pd.read_csv(file)
    assert table["step"].tolist() == [10, 20, 25]
    assert table["train/loss"].tolist() == [0.7, 0.5, 2.5]


@pytest.mark.parametrize("before", ["", "epoch,st", "epoch,step,train/loss\n1,3"])
def test_a_file_torn_in_its_first_lines_is_begun_anew(tmp_path, before):
    (tmp_path / "metrics.csv").write_text(before)
    log(tmp_path, [25])
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [25]


def test_a_field_too_many_is_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n10,0.7\n20,0.5,0.9\n")
    log(tmp_path, [25])
    assert pd.read_csv(tmp_path / "metrics.csv")["train/loss"].tolist() == [0.7, 0.5, 2.5]


def test_rows_stay_if_the_resumed_run_dies_before_it_logs(tmp_path):
    log(tmp_path, [0, 10])
    assert MetricsFile(tmp_path).experiment is not None
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [0, 10]
