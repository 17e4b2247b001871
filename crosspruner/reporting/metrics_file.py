"""metrics.csv of a run, which goes on where a stopped run left it."""

import csv
import math
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, writing `metrics.csv` into the run folder itself.

    Where the file exists, its rows are kept up to the step at which logging goes on; a last line
    that was half written goes.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(save_dir=folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:  # type: ignore[override]
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Continued(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]


class _Continued(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        self._before: list[dict[str, Any]] | None = None
        if file.is_file():
            with file.open(newline="") as opened:
                whole = [line for line in opened if line.endswith("\n")]
            reader = csv.DictReader(whole)
            self._before = [row for row in reader if _is_number(row.get("step"))]
            self.metrics_keys = list(reader.fieldnames or ())

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if self._before is not None and step is not None:
            kept = [row for row in self._before if float(row["step"]) < step]
            with Path(self.metrics_file_path).open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=self.metrics_keys, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(kept)
            self._before = None
        super().log_metrics(metrics_dict, step)


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and math.isfinite(float(text))
    except ValueError:
        return False
