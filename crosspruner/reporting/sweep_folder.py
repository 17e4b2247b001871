"""The folder of a sweep: found again when the same command is typed again, its table kept current.

A sweep that was stopped, or in which a job failed, is unfinished. The same command typed again goes
on in its folder: finished jobs are skipped, a job with a checkpoint resumes from it, the others
start. Once all jobs are done, the same command starts a new sweep.
"""

import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

COMMAND = "command.json"
"""What was typed, in the folder of a sweep."""

FINISHED = "DONE"
"""In the folder of a sweep: every job ended well."""


def unfinished_sweep(sweeps: str, stamp: str) -> str:
    """Name of the newest sweep below `sweeps` if this command began it and it is unfinished.

    Args:
        sweeps: folder that holds sweeps.
        stamp: name of a new one.

    Returns:
        The name to use.
    """
    begun = sorted(Path(sweeps).glob(f"*/{COMMAND}"), reverse=True)
    for file in begun:
        if _read(file) == _typed() and not (file.parent / FINISHED).exists():
            return file.parent.name
    return stamp


class SweepFolder(Callback):
    """Hydra callback: notes what was typed, and writes `summary.csv` after every job.

    After every job, so that a sweep that is killed, or in which a job fails, has its table too.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COMMAND).write_text(json.dumps(_typed()) + "\n")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode is RunMode.MULTIRUN:
            self._write_table(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # Hydra comes here only if no job failed.
        self._write_table(config)
        (Path(config.hydra.sweep.dir) / FINISHED).write_text("")

    def _write_table(self, config: DictConfig) -> None:
        # Imported here: hydra makes its callbacks before it knows whether a job will run.
        from crosspruner.reporting.sweep_table import write_sweep_summary

        write_sweep_summary(Path(config.hydra.sweep.dir))


def _typed() -> list[str]:
    return sys.argv[1:]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


# Hydra imports this module to make the callback, before it asks for the folder.
OmegaConf.register_new_resolver("unfinished_sweep", unfinished_sweep, use_cache=True, replace=True)
