"""Keeps the table of a sweep up to date while its jobs end."""

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class SweepSummary(Callback):
    """Hydra callback: writes `summary.csv`, one row per job, into the folder of a sweep.

    After every job, so that a sweep that is killed, or in which a job fails, has its table too.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode is RunMode.MULTIRUN:
            self._write(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._write(config)

    def _write(self, config: DictConfig) -> None:
        # Imported here: hydra makes its callbacks before it knows whether a job will run.
        from crosspruner.reporting.sweep_table import write_sweep_summary

        write_sweep_summary(Path(config.hydra.sweep.dir))
