"""How far a sweep is: one bar over all of its jobs in a terminal, one line per job everywhere.

The command that launches a sweep watches its folder. So it is the same for jobs that run here one
by one, in processes beside it, or on other machines.
"""

import atexit
import logging
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from crosspruner.reporting.run_folder import RunFolder
from crosspruner.reporting.templating import duration
from crosspruner.training.progress import EPOCHS

_EVERY_SECONDS = 1.0


class SweepProgress(Callback):
    """Hydra callback: shows the progress of a sweep while it runs."""

    def __init__(self) -> None:
        self.watch: SweepWatch | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.watch = SweepWatch(Path(config.hydra.sweep.dir), number_of_jobs(config))
        self.watch.start()
        atexit.register(self.watch.stop)  # where the sweep breaks off

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.watch is not None:
            self.watch.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {"watch": None}  # to the processes of the jobs: the watch stays here


@dataclass(frozen=True)
class Count:
    """The jobs of a sweep at one moment."""

    ended: tuple[str, ...]
    """Names of those that are done or failed."""
    failed: int
    work: float
    """Jobs that ended, and what is trained of the others: 2.5 = two and a half jobs."""


def count_jobs(sweep: Path, since: float) -> Count:
    """Count the jobs of a sweep from what lies in its folder.

    Args:
        sweep: its folder.
        since: a failure noted before this time (seconds since the epoch) is of an earlier try, and
            does not count: the job will be run again.
    """
    ended, failed, work = [], 0, 0.0
    for folder in sorted(sweep.glob("[0-9]*"), key=lambda path: (len(path.name), path.name)):
        if (folder / "DONE").exists():
            ended.append(folder.name)
            work += 1
        elif _modified(folder / "FAILED") >= since:
            ended.append(folder.name)
            failed += 1
            work += 1
        else:
            work += _trained(folder)
    return Count(tuple(ended), failed, work)


def time_left(seconds: float, before: float, now: float, total: float) -> float | None:
    """Seconds until all is done, at the pace so far; None where there is no pace yet.

    Args:
        seconds: time since the start.
        before: jobs' worth of work that was there at the start.
        now: what is there now.
        total: of all jobs.
    """
    return seconds * (total - now) / (now - before) if now > before else None


def number_of_jobs(config: DictConfig) -> int | None:
    """How many jobs a sweep has; None where its sweeper decides that as it goes.

    Args:
        config: what hydra composed for the sweep.
    """
    sweeper = config.hydra.sweeper
    if "trials" in sweeper:
        return int(sweeper.trials)
    if "BasicSweeper" not in sweeper._target_:
        return None
    typed = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    typed += list(config.hydra.overrides.task)
    jobs: dict[str, int] = {}
    try:
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        for override in parser.parse_overrides(typed):
            swept = override.is_discrete_sweep()
            values = len(list(override.sweep_string_iterator())) if swept else 1
            jobs[override.get_key_element()] = values  # the last one typed counts
    except HydraException:
        return None  # the sweeper will tell what is wrong
    number = 1
    for values in jobs.values():
        number *= values
    return number


class SweepWatch:
    """Watches the folder of a sweep from a thread, and shows what changes.

    Args:
        sweep: the folder.
        total: number of jobs; None = not known.
    """

    def __init__(self, sweep: Path, total: int | None) -> None:
        self.sweep = sweep
        self.total = total
        self.started, self.clock = time.time(), time.monotonic()
        self.before = count_jobs(sweep, self.started)
        self.told = set(self.before.ended)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="sweep-progress", daemon=True)
        self.progress: Progress | None = None

    def start(self) -> None:
        """Show the bar, if this is a terminal, and begin to watch."""
        if self.before.ended:
            self._say(f"{len(self.before.ended)} jobs are done already")
        if get_console().is_terminal:
            columns = (
                "[bold]sweep",
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rest]}"),
            )
            self.progress = Progress(*columns, console=get_console(), transient=False)
            self.progress.add_task("sweep", total=self.total, rest="")
            self.progress.start()
            _print_above_the_bar()
        self.thread.start()

    def stop(self) -> None:
        """Look a last time, and leave the bar as it is."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        self.thread.join()
        self._look()
        if self.progress is not None:
            self.progress.stop()

    def _run(self) -> None:
        while not self.stopping.wait(_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        now = count_jobs(self.sweep, self.started)
        rest = self._rest(now)
        for job in now.ended:
            if job not in self.told:
                self.told.add(job)
                self._say(f"[{len(self.told)}/{self.total or '?'}] {_line(self.sweep / job)}{rest}")
        if self.progress is not None:
            done = len(now.ended)
            self.progress.update(self.progress.task_ids[0], completed=done, rest=rest.lstrip(", "))

    def _rest(self, now: Count) -> str:
        failed = f", {now.failed} failed" if now.failed else ""
        if self.total is None or len(now.ended) >= self.total:
            return failed
        seconds = time.monotonic() - self.clock
        left = time_left(seconds, self.before.work, now.work, self.total)
        return failed if left is None else f"{failed}, {duration(left)} left"

    def _say(self, line: str) -> None:
        get_console().print(Text(line), soft_wrap=True)


def _line(job: Path) -> str:
    """What became of a job."""
    run = RunFolder(job)
    if run.status == "failed":
        return f"job {job.name} failed: {run.message}"
    accuracy, saved = run.summary.get("accuracy"), run.summary.get("compute_saved")
    return f"job {job.name} done: accuracy {accuracy:.2%}, {saved:.2%} saved"


def _trained(job: Path) -> float:
    """Share of the epochs of a job that is trained, from 0 to below 1."""
    try:
        trained, _, epochs = (job / EPOCHS).read_text().partition("/")
        return min(int(trained) / int(epochs), 0.99)
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return -1.0


def _print_above_the_bar() -> None:
    """Let log handlers that were made before the bar write above it, not into it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stdout__:
            handler.setStream(sys.stdout)
