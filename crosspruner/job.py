"""What surrounds a job: a folder of its own, its outcome on record, the process left as it was.

The jobs of a sweep may share a process (basic launcher, joblib) or run side by side (joblib,
submitit), and a sweep may be typed again while jobs of the first go on in a queue. A job therefore
holds its folder for itself, and leaves nothing behind in its process.
"""

import gc
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_only

from crosspruner.errors import CrossprunerError

log = logging.getLogger(__name__)

LOCK = ".lock"
"""File in a run folder that the process holds which runs the job."""


def is_first_process() -> bool:
    """Whether this is the only process of its run, or the first one of a distributed run."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder; wait while another process runs the job in it.

    The lock ends with the process, however that ends. Of a distributed run, the first process holds
    it for all.

    Args:
        folder: the run folder.
    """
    if not is_first_process():
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: another process runs this job; waiting until it ends", folder)
        lock.acquire(poll_interval=1)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Leave DONE in the run folder, or FAILED with the message."""
    done, failed = folder / "DONE", folder / "FAILED"
    if is_first_process():
        failed.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)  # Lightning exits on Ctrl-C
        message = "interrupted" if stopped else str(error) or type(error).__name__
        failed.write_text(message + "\n")
        expected = stopped or isinstance(error, CrossprunerError)
        logging.getLogger("crosspruner.failure").error(message, exc_info=not expected)
        raise
    if is_first_process():
        done.write_text("")


@contextmanager
def process_left_as_found() -> Iterator[None]:
    """Undo what a job sets for its whole process, and free what it held.

    Lightning notes the seed in the environment, for one; the next job of a sweep must not find it.
    """
    environment = dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)
        gc.collect()  # a trainer and its callbacks refer to each other
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def join_processes() -> None:
    """Tell Lightning of the processes that submitit started for one job (tasks_per_node above 1).

    Under SLURM Lightning finds them itself; `submitit_local` has names of its own.
    """
    if int(os.environ.get("SUBMITIT_LOCAL_NTASKS", "1")) == 1 or "WORLD_SIZE" in os.environ:
        return
    from submitit.helpers import TorchDistributedEnvironment

    found = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    rank_zero_only.rank = found.rank  # type: ignore[attr-defined]


def has_console() -> bool:
    """Whether what this process prints is for the user; the workers of joblib share one console."""
    return multiprocessing.parent_process() is None and is_first_process()


def quieten_worker() -> None:
    """Take the console from a job that runs beside others: it is for their overall progress.

    All of it is in the job's own log. Of a distributed run, the first process speaks for all.
    """
    if has_console():
        return
    root = logging.getLogger()
    if not is_first_process():
        root.setLevel(logging.WARNING)
    for handler in list(root.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream in (
            sys.stdout,
            sys.stderr,
        ):
            root.removeHandler(handler)


def share_cores(jobs: int) -> None:
    """Give this process its share of the cores, where `jobs` processes run at the same time.

    Each would start a thread on each core otherwise, and all would wait for one another.
    OMP_NUM_THREADS has precedence.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, (cores or 1) // jobs))
