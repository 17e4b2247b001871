"""Weights & Biases: one run of ours is one run there, and the process is left as it was.

Online only where an account is configured on this machine, offline otherwise: never a prompt,
never an upload without an account. An offline run is sent later by
`wandb sync logs/.../wandb/offline-run-*`.
"""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from crosspruner.errors import ConfigError
from crosspruner.reporting.wandb_account import MODES, resolve_mode

log = logging.getLogger(__name__)

RUN_ID = "wandb_id"
"""File in the run folder that holds the id of its wandb run, from the start of the run on."""

# The best value of a metric goes into the summary; all others end with their last value.
SUMMARIES: dict[str, Literal["min", "max"]] = {
    "val/acc": "max",
    "val/acc_at_ratio": "max",
    "val/loss": "min",
}


@dataclass(frozen=True)
class TrackingSettings:
    """How a run is tracked: the config group `logger`, key `wandb`."""

    project: str = "crosspruner"
    """Project there; made on first use."""
    entity: str | None = None
    """Team or user; None = the account's default."""
    mode: str = "auto"
    """`auto` (online where an account is configured, else offline; WANDB_MODE has precedence),
    `online`, `offline`, or `disabled`."""
    tags: list[str] | tuple[str, ...] = ()
    """Labels of the run."""
    job_type: str = "train"
    """What kind of job it is, such as train or eval."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(
                f"logger.wandb.mode={self.mode!r} is unknown: use one of {', '.join(MODES)}"
            )


@contextmanager
def tracked(
    settings: TrackingSettings,
    folder: Path,
    config: Mapping[str, Any],
    labels: Mapping[str, Any],
    resume_from: Path | str | None = None,
) -> Iterator[WandbLogger | None]:
    """A wandb run for as long as the `with` block lasts.

    The run is finished at the end of the block, as failed if the block raises. Every WANDB_*
    variable of the environment is then as it was before, and no wandb run is left open, so the
    next job in this process gets a run of its own.

    Args:
        settings: Project, mode, tags.
        folder: The run folder; all files go below it.
        config: The resolved configuration, nested plain values; becomes the run's config.
        labels: How the run was made, flat: model, data, crossbar, grain, ratio, seed, ...; becomes
            `labels` in the run's config, and its name.
        resume_from: The checkpoint that the run goes on from; its run folder's wandb run is then
            continued.

    Yields:
        The Lightning logger, or None where tracking is disabled or wandb cannot start: a run is
        never lost for want of tracking.

    Raises:
        ConfigError: `mode=online` without an account.
    """
    mode = resolve_mode(settings.mode)
    if mode == "disabled":
        yield None
        return
    before = _wandb_environment()
    chatter = logging.getLogger("wandb")  # goes to its own debug.log; not to ours as well
    propagated, chatter.propagate = chatter.propagate, False
    try:
        logger = _start(mode, settings, folder, config, labels, resume_from)
        try:
            yield logger
        except BaseException:
            _finish(exit_code=1)
            raise
        _finish(exit_code=0)
    finally:
        chatter.propagate = propagated
        _restore_environment(before)


def sweep_of(folder: Path) -> str | None:
    """Stamp of the sweep that a run folder belongs to; None for a single run."""
    folder = folder.resolve()
    return folder.parent.name if folder.parent.parent.name == "multiruns" else None


def run_name(labels: Mapping[str, Any]) -> str:
    """`vgg8-256x256-column-r0.5-s0`."""
    parts = [str(labels[key]) for key in ("model", "crossbar", "grain") if key in labels]
    if labels.get("ratio") is not None:
        parts.append(f"r{labels['ratio']:g}")
    if labels.get("seed") is not None:
        parts.append(f"s{labels['seed']}")
    return "-".join(parts) or "run"


def run_id(folder: Path, resume_from: Path | str | None = None) -> str:
    """Id of the wandb run, the same whenever the run is taken up again.

    It is the one noted in the run folder; else the one noted in the folder of the checkpoint that
    is resumed; else a new one. It is noted in the folder before anything else happens, so that
    it survives a run that is killed.
    """
    noted = folder / RUN_ID
    candidates = [noted]
    if resume_from is not None:
        candidates += [parent / RUN_ID for parent in Path(resume_from).resolve().parents[:2]]
    known = (file.read_text().strip() for file in candidates if file.is_file())
    name = next(filter(None, known), None) or secrets.token_hex(4)
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(name + "\n")
    return name


def _start(
    mode: str,
    settings: TrackingSettings,
    folder: Path,
    config: Mapping[str, Any],
    labels: Mapping[str, Any],
    resume_from: Path | str | None,
) -> WandbLogger | None:
    if mode == "offline":  # error reports too stay here; wandb reads this when it is imported
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    if getattr(rank_zero_only, "rank", 0) != 0:
        # Of a distributed run, the first process alone has a wandb run; this logger is a dummy.
        return WandbLogger(project=settings.project, save_dir=folder)
    if wandb.run is not None:
        log.warning("the wandb run %s was left open; it is closed before a new one", wandb.run.id)
        wandb.finish(exit_code=1)
    arguments = {
        "project": settings.project,
        "entity": settings.entity,
        "name": run_name(labels),
        "group": sweep_of(folder),
        "job_type": settings.job_type,
        "tags": list(settings.tags),
        "id": run_id(folder, resume_from),
        "config": {**config, "labels": dict(labels)},
    }
    for attempt in ("online", "offline") if mode == "online" else ("offline",):
        try:
            return _open(attempt, folder, arguments)
        except wandb.errors.Error as error:
            log.warning("wandb does not start %s: %s", attempt, error)
            wandb.finish(exit_code=1)
    log.warning("this run is not tracked by wandb; its metrics are in metrics.csv")
    return None


def _open(mode: str, folder: Path, arguments: dict[str, Any]) -> WandbLogger:
    import wandb

    if mode == "offline":  # all files stay in the run folder
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
    # `mode`, not `offline=True`: the latter sets WANDB_MODE for the whole process.
    settings = wandb.Settings(
        console="off", silent=True, init_timeout=60 if mode == "online" else 300
    )
    logger = WandbLogger(save_dir=folder, mode=mode, settings=settings, **arguments)
    # Lightning passes it on unset, and wandb warns of it on every run: it has no effect any more.
    logger._wandb_init.pop("anonymous", None)
    run = logger.experiment
    for metric, summary in SUMMARIES.items():
        run.define_metric(metric, step_metric="trainer/global_step", summary=summary)
    if run.offline:
        log.info("wandb: offline run %s; send it by: wandb sync %s", run.id, Path(run.dir).parent)
    else:
        log.info("wandb: %s", run.url)
    return logger


def _finish(exit_code: int) -> None:
    import wandb

    if wandb.run is not None:
        wandb.finish(exit_code=exit_code)


def _wandb_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}


def _restore_environment(before: dict[str, str]) -> None:
    for key in _wandb_environment():
        if key not in before:
            del os.environ[key]
    os.environ.update(before)
