"""The folder of a sweep: found again when the same command is typed again, its table kept current.

A sweep that was stopped, or in which a job failed, is unfinished. The same command typed again goes
on in its folder: finished jobs are skipped, a job with a checkpoint resumes from it, the others
start. Once all jobs are done, the same command starts a new sweep.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import crosspruner
from crosspruner.reporting.run_folder import find_runs
from crosspruner.reporting.sweep_table import SUMMARY, sweep_table
from crosspruner.reporting.templating import write_whole

COMMAND = "command.json"
"""What was typed, in the folder of a sweep."""

FINISHED = "DONE"
"""In the folder of a sweep: every job ended well."""

MAX_REASONS = 5
"""Failed jobs of which the last line of a sweep tells the reason."""


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
    """Hydra callback: notes what was typed, keeps `summary.csv`, and tells how the sweep ended.

    The table is written after every job, by the process that ran it, so that a sweep that is
    killed has its table too, whatever the launcher.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COMMAND).write_text(json.dumps(_typed()) + "\n")
        if "basic" not in config.hydra.launcher._target_:
            # Processes that a launcher starts run this very code, wherever it lies.
            ours = str(Path(crosspruner.__file__).resolve().parent.parent)
            paths = [ours, *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode is RunMode.MULTIRUN:
            write_table(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        trouble = troubles(write_table(folder))
        if trouble:
            # Hydra turns an exception of a callback into a warning, but not this one.
            sys.exit(f"error: {trouble}. All of it is in {folder / SUMMARY}")
        (folder / FINISHED).write_text("")


def write_table(sweep: Path) -> pd.DataFrame:
    """Write `summary.csv`, one process at a time: the last one to write has seen all that ended.

    Args:
        sweep: folder of the sweep.

    Returns:
        The table.
    """
    with FileLock(sweep / ".summary.lock"):
        table = sweep_table(find_runs(sweep), sweep)
        write_whole(sweep / SUMMARY, table.to_csv(index=False))
    return table


def troubles(table: pd.DataFrame) -> str:
    """What went wrong in a sweep, in one line; empty if every job is done."""
    others = table[table["status"] != "done"]
    if others.empty:
        return ""
    reasons = others["message"].where(others["status"] == "failed", "not finished")
    shown = [f"{run}: {why}" for run, why in zip(others["run"], reasons, strict=True)][:MAX_REASONS]
    if len(others) > MAX_REASONS:
        shown.append(f"and {len(others) - MAX_REASONS} more")
    return f"{len(others)} of {len(table)} jobs failed: {'; '.join(shown)}"


def batch_of_jobs(launcher: str) -> int | None:
    """How many jobs to hand to a launcher at a time.

    Args:
        launcher: its class.

    Returns:
        2 for the launcher that starts all it is handed at once; None = all, for the others.
    """
    return 2 if launcher.endswith("LocalLauncher") else None


def _typed() -> list[str]:
    return sys.argv[1:]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


# As in train.py, for the processes of the jobs, which begin here.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/.*is validated against ConfigStore schema")
# Hydra imports this module to make the callback, before it asks for the folder.
OmegaConf.register_new_resolver("unfinished_sweep", unfinished_sweep, use_cache=True, replace=True)
OmegaConf.register_new_resolver("batch_of_jobs", batch_of_jobs, replace=True)
