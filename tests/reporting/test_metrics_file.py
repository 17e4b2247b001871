"""metrics.csv across a stop: rows before the checkpoint stay, later ones are written anew."""

import pandas as pd

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


def test_rows_stay_if_the_resumed_run_dies_before_it_logs(tmp_path):
    log(tmp_path, [0, 10])
    assert MetricsFile(tmp_path).experiment is not None
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [0, 10]
