"""One run, from a composed configuration to a run folder.

configuration -> data -> network -> plan -> fit (dense, prune, fine-tune) -> test -> run folder
"""

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from safetensors.torch import load_file

from crosspruner.config import RunSettings, run_settings
from crosspruner.errors import ConfigError, CrossprunerError
from crosspruner.hardware import Plan
from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.snapshot import DenseSnapshot
from crosspruner.reporting.config_tree import config_tree
from crosspruner.reporting.console import print_crossbars
from crosspruner.reporting.layers import layer_table
from crosspruner.reporting.page import write_run_report
from crosspruner.reporting.results import Outcome, headline, write_results
from crosspruner.reporting.tracked_results import log_results
from crosspruner.reporting.tracking import TrackingSettings, tracked
from crosspruner.training import Classifier, build_model, load_weights
from crosspruner.training.data.base import ImageData
from crosspruner.training.progress import progress_callbacks

log = logging.getLogger(__name__)


def run_or_stop(config: DictConfig, traceback: bool) -> float:
    """`run` for the command line: a failing single run ends with one line on stderr.

    Args:
        config: what hydra composed.
        traceback: raise instead. Jobs of a sweep always raise: the sweep goes on with the others.
    """
    try:
        return run(config)
    except Exception as error:
        if traceback or HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"error: {text}")


def run(config: DictConfig) -> float:
    """Run one job.

    Args:
        config: what hydra composed for it.

    Returns:
        Test accuracy of the pruned network, 0 to 1.

    Raises:
        CrossprunerError: anything that the user can mend. The run folder keeps the message in
            `FAILED`, the last checkpoint and the metrics so far.
    """
    folder = Path(config.paths.output_dir)
    if (folder / "DONE").exists():
        log.info("%s is done: nothing to do", folder)
        return float(json.loads((folder / "summary.json").read_text())["accuracy"])
    with _recorded(folder):
        accuracy = _run(config, run_settings(config), folder)
    if getattr(rank_zero_only, "rank", 0) == 0:
        log.info("report: %s", write_run_report(folder))
    return accuracy


def _run(config: DictConfig, settings: RunSettings, folder: Path) -> float:
    started = time.monotonic()
    (folder / "config_tree.txt").write_text(config_tree(config))
    _quieten_lightning()
    _fix_randomness(settings.seed)
    data = _data(config)
    data.prepare_data()
    data.setup()
    model = _plain(config.model)
    weights = model.pop("weights")
    network = build_model(
        **model,
        num_classes=data.num_classes,
        image_size=data.image_size,
        in_channels=data.in_channels,
    )
    if weights is not None:
        log.info("%s: %s", weights, load_weights(network, weights))

    pruning = _pruning(settings)
    input_shape = (data.in_channels, *data.image_size)
    plan = pruning.prepare(network, input_shape)
    log.info("%s\n%s", _intention(plan, pruning), plan.table())

    module = Classifier(
        network,
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.lr_schedule) if config.lr_schedule else None,
        seed=settings.seed,
    )
    snapshot = DenseSnapshot(folder / "checkpoints" / "dense.safetensors", pruning)
    labels = _labels(config, settings)
    with _loggers(config, folder, labels) as (loggers, board):
        trainer = _trainer(config, settings, [pruning, snapshot], loggers)
        trainer.fit(module, datamodule=data, ckpt_path=_checkpoint(settings, folder))
        outcome = _judge(trainer, module, data, pruning, snapshot)
        if trainer.is_global_zero:
            seconds = time.monotonic() - started
            summary = write_results(folder, network, outcome, labels, seconds)
            if board is not None:
                log_results(board, folder)
    if trainer.is_global_zero:
        print_crossbars(layer_table(outcome.plan), settings.ratio)
        log.info("%s", headline(summary))
    return outcome.accuracy


def _data(config: DictConfig) -> ImageData:
    """The data set of the configuration; its own errors as they are, without hydra's wrapping."""
    try:
        return instantiate(config.data)
    except InstantiationException as error:
        if isinstance(error.__cause__, CrossprunerError):
            raise error.__cause__ from None
        raise


def _intention(plan: Plan, pruning: CrossbarPruning) -> str:
    """What is about to happen, in one line, before anything is trained."""
    gone = sum(
        (layout.blocks - pruning.budget[name]) * layout.crossbars_per_block
        for name, layout in pruning.layouts.items()
    )
    total = plan.compute_crossbars
    return (
        f"to remove {gone:,} of {total:,} compute crossbars ({gone / total:.2%}, "
        f"{pruning.ratio:.2%} asked for) from {len(pruning.layouts)} of {len(plan.layers)} layers"
    )


def _judge(
    trainer: pl.Trainer,
    module: Classifier,
    data: ImageData,
    pruning: CrossbarPruning,
    snapshot: DenseSnapshot,
) -> Outcome:
    """Read the test split, once for the dense and once for the pruned network."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best:
        state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
    pruned = {key: value.clone() for key, value in module.net.state_dict().items()}
    accuracy = _test(trainer, module, data)
    dense_accuracy: float | None = accuracy
    if pruning.ratio > 0:
        dense_accuracy = None
        if snapshot.path.exists():
            module.net.load_state_dict(load_file(snapshot.path))
            dense_accuracy = _test(trainer, module, data)
        else:
            log.warning("no dense snapshot beside the checkpoint: dense accuracy is unknown")
    module.net.load_state_dict(pruned)
    return Outcome(dense_accuracy, accuracy, pruning.plan, pruning.masks)


def _test(trainer: pl.Trainer, module: Classifier, data: ImageData) -> float:
    return float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])


def _pruning(settings: RunSettings) -> CrossbarPruning:
    return CrossbarPruning(
        crossbar=settings.crossbar,
        mapping=settings.mapping,
        grain=settings.grain.name,
        ratio=settings.ratio,
        schedule=settings.schedule,
        settings=settings.solver,
        include=settings.include,
        exclude=settings.exclude,
        root="net",
        seed=settings.seed,
    )


def _trainer(
    config: DictConfig, settings: RunSettings, ours: list[pl.Callback], loggers: list[Logger]
) -> pl.Trainer:
    callbacks = [*ours, *progress_callbacks(), *instantiate(config.callbacks).values()]
    if not loggers:  # it would raise without one
        callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]
    several = config.trainer.get("devices", 1) not in (1, "1", "auto")
    hydra = HydraConfig.get()
    if several and hydra.mode is RunMode.MULTIRUN and "basic" in hydra.launcher._target_:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} in a sweep: Lightning would start the whole "
            "sweep again for each device. Give each job a process of its own: "
            "hydra/launcher=submitit_local (or submitit_slurm), or run the jobs one by one"
        )
    epochs = config.trainer.max_epochs
    with open_dict(config):
        config.trainer.max_epochs = epochs or math.ceil(settings.schedule.epochs)
    return instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=loggers or False,
        enable_progress_bar=sys.stdout.isatty(),
    )


@contextmanager
def _loggers(
    config: DictConfig, folder: Path, labels: dict[str, Any]
) -> Iterator[tuple[list[Logger], WandbLogger | None]]:
    """The loggers that are configured, and the wandb one among them."""
    loggers: list[Logger] = [
        instantiate(logger) for name, logger in config.logger.items() if name != "wandb"
    ]
    if "wandb" not in config.logger:
        yield loggers, None
        return
    tracking = TrackingSettings(**_plain(config.logger.wandb))
    with tracked(tracking, folder, _plain(config), labels, config.ckpt_path) as board:
        yield [*loggers, board] if board is not None else loggers, board


def _checkpoint(settings: RunSettings, folder: Path) -> str | None:
    """The checkpoint to go on from: the one given, or what this very run left when it stopped."""
    if settings.ckpt_path is None:
        own = folder / "checkpoints" / "last.ckpt"
        return str(own) if own.is_file() else None
    if not Path(settings.ckpt_path).is_file():
        raise ConfigError(
            f"ckpt_path={settings.ckpt_path} is not a file: give the last.ckpt of a run, "
            "logs/train/runs/STAMP/checkpoints/last.ckpt"
        )
    return settings.ckpt_path


def _labels(config: DictConfig, settings: RunSettings) -> dict[str, Any]:
    """What a summary says of how the run was made."""
    choices = HydraConfig.get().runtime.choices
    return {
        "model": config.model.name,
        "data": choices["data"],
        "crossbar": str(settings.crossbar),
        "mapping": choices["mapping"],
        "grain": settings.grain.name,
        "ratio": settings.ratio,
        "seed": settings.seed,
        "solver": settings.solver.name,
        "procedure": settings.procedure.name,
        "budget": settings.budget.name,
    }


def _fix_randomness(seed: int) -> None:
    """Every job of a sweep starts alike, whatever the job before it in this process did."""
    pl.seed_everything(seed, workers=True, verbose=False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = False


def _quieten_lightning() -> None:
    """Its hardware lines, tips and own deprecations say nothing about this run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (".*isinstance.treespec, LeafSpec.*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", message, module="pytorch_lightning")


def _plain(config: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """Leave DONE in the run folder, or FAILED with the message."""
    done, failed = folder / "DONE", folder / "FAILED"
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
    done.write_text("")
