"""One run, from a composed configuration to a run folder.

configuration -> data -> network -> plan -> fit (dense, prune, fine-tune) -> test, on the device as
well -> run folder
"""

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from torch import nn

from crosspruner.config import RunSettings, run_settings
from crosspruner.errors import ConfigError, CrossprunerError
from crosspruner.hardware import Plan
from crosspruner.job import (
    has_console,
    is_first_process,
    join_processes,
    own_folder,
    process_left_as_found,
    quieten_worker,
    recorded,
    share_cores,
)
from crosspruner.judging import check_device, judge, judge_on_device
from crosspruner.pruning.both_callback import BothPruning
from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.device_noise import DeviceNoise
from crosspruner.pruning.held_run import HeldRun, dense_weights
from crosspruner.pruning.layer_pruner import LayerwiseSettings
from crosspruner.pruning.layerwise_callback import LayerwisePruning
from crosspruner.pruning.penalised_callback import PenalisedPruning
from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.pruning.schedule import Phase
from crosspruner.pruning.snapshot import Snapshot
from crosspruner.reporting.config_tree import config_tree
from crosspruner.reporting.console import print_crossbars
from crosspruner.reporting.layers import layer_table
from crosspruner.reporting.page import write_run_report
from crosspruner.reporting.results import headline, write_results
from crosspruner.reporting.tracked_results import log_results
from crosspruner.reporting.tracking import TrackingSettings, tracked
from crosspruner.training import Classifier, build_model, load_weights
from crosspruner.training.average import WeightAverage
from crosspruner.training.data.base import ImageData
from crosspruner.training.data.mixing import Mixing
from crosspruner.training.distillation import Distillation
from crosspruner.training.progress import progress_callbacks

log = logging.getLogger(__name__)


def run_or_stop(config: DictConfig, traceback: bool) -> float:
    """`run` for the command line: a failing single run ends with one line on stderr.

    A job of a sweep that fails leaves its message in its folder and its log, and returns NaN: the
    others go on, whatever the launcher, and the end of the sweep tells of all that failed.

    Args:
        config: what hydra composed.
        traceback: raise instead; in a sweep, show the traceback.
    """
    try:
        return run(config)
    except Exception as error:
        if is_sweep() and (Path(config.paths.output_dir) / "FAILED").exists():
            if traceback:
                log.exception("%s failed", config.paths.output_dir)
            return math.nan
        if traceback or is_sweep():
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
    join_processes()
    quieten_worker()
    with own_folder(folder), process_left_as_found():
        if (folder / "DONE").exists():
            log.info("%s is done: nothing to do", folder)
            return float(json.loads((folder / "summary.json").read_text())["accuracy"])
        with recorded(folder):
            accuracy = _run(config, run_settings(config), folder)
        if is_first_process():
            log.info("report: %s", write_run_report(folder))
    return accuracy


def is_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def _run(config: DictConfig, settings: RunSettings, folder: Path) -> float:
    started = time.monotonic()
    if is_sweep() and "LocalLauncher" in HydraConfig.get().launcher._target_:
        hydra = HydraConfig.get()
        jobs = hydra.sweeper.get("max_batch_size") or hydra.sweeper.get("at_once") or 1
        share_cores(jobs * hydra.launcher.tasks_per_node)
    (folder / "config_tree.txt").write_text(config_tree(config))
    quieten_lightning()
    fix_randomness(settings.seed)
    data = open_data(config)
    network = network_of(config, data)
    weights = _initial_weights(config, settings)
    if weights is not None:
        log.info("%s: %s", weights, load_weights(network, weights))

    pruning = _pruning(settings)
    input_shape = (data.in_channels, *data.image_size)
    plan = pruning.prepare(network, input_shape)
    log.info("%s\n%s", _intention(plan, pruning), plan.table())
    check_device(settings.device, plan)

    module = _module(config, settings, network, data)
    kept = folder / "checkpoints"
    ema = settings.training.ema
    average = None if ema is None else WeightAverage(ema, pruning)
    averaged = None if average is None else average.state_of
    snapshots = (
        Snapshot(kept / "dense.safetensors", pruning, Phase.PRUNE, averaged),
        Snapshot(kept / "pruned.safetensors", pruning, Phase.FINETUNE, averaged),
    )
    labels = _labels(config, settings, pruning.ratio)
    with _loggers(config, folder, labels) as (loggers, board):
        # The dense network is kept before, the pruned one after a procedure that prunes between
        # steps; what is left of it is averaged, and noise goes into that.
        ours: list[pl.Callback] = [snapshots[0], pruning, snapshots[1]]
        if settings.distill > 0:
            ours.insert(1, Distillation(snapshots[0]))
        if average is not None:
            ours.append(average)
        if settings.device.train:
            ours.append(DeviceNoise(settings.device, pruning, settings.seed))
        trainer = _trainer(config, pruning, ours, loggers)
        trainer.fit(module, datamodule=data, ckpt_path=_checkpoint(settings, folder))
        outcome = judge(trainer, module, data, pruning, snapshots)
        if trainer.is_global_zero:
            outcome = replace(outcome, units=settings.cost)
            outcome = judge_on_device(outcome, network, data, settings.device)
            seconds = time.monotonic() - started
            summary = write_results(folder, network, outcome, labels, seconds)
            if board is not None:
                log_results(board, folder)
    if has_console():
        print_crossbars(layer_table(outcome.plan), pruning.ratio)
    if trainer.is_global_zero:
        log.info("%s", headline(summary))
    return outcome.accuracy


def open_data(config: DictConfig) -> ImageData:
    """The data set of the configuration, set up.

    Its own errors come as they are, without hydra's wrapping.
    """
    try:
        data = instantiate(config.data)
    except InstantiationException as error:
        if isinstance(error.__cause__, CrossprunerError):
            raise error.__cause__ from None
        raise
    data.prepare_data()
    data.setup()
    return data


def network_of(config: DictConfig, data: ImageData) -> nn.Module:
    """The network of the configuration for that data set, as its seed initialises it."""
    model = _plain(config.model)
    del model["weights"]
    return build_model(
        **model,
        num_classes=data.num_classes,
        image_size=data.image_size,
        in_channels=data.in_channels,
    )


def _initial_weights(config: DictConfig, settings: RunSettings) -> str | Path | None:
    """The file of the weights to begin with; None = as the seed initialises them."""
    if config.model.weights is None and settings.procedure.name == "held":
        return dense_weights(settings.procedure.run)
    weights: str | None = config.model.weights
    return weights


def _module(
    config: DictConfig, settings: RunSettings, network: nn.Module, data: ImageData
) -> Classifier:
    how = settings.training
    mixing = Mixing(data.num_classes, how.mixup, how.cutmix, how.mix_share)
    if settings.distill > 0 and settings.ratio == 0:
        log.warning("distill=%g does nothing at ratio=0: nothing is pruned", settings.distill)
    return Classifier(
        network,
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.lr_schedule) if config.lr_schedule else None,
        label_smoothing=how.label_smoothing,
        channels_last=how.channels_last,
        seed=settings.seed,
        mixing=mixing,
        distill=settings.distill,
        temperature=how.distill_temperature,
        compile=how.compile,
        compile_backend=how.compile_backend,
    )


def _intention(plan: Plan, pruning: PruningCallback) -> str:
    """What is about to happen, in one line, before anything is trained."""
    gone = sum(
        (layout.blocks - pruning.blocks[name]) * layout.crossbars_per_block
        for name, layout in pruning.layouts.items()
    )
    total = plan.compute_crossbars
    return (
        f"to remove {gone:,} of {total:,} compute crossbars ({gone / total:.2%}, "
        f"{pruning.ratio:.2%} asked for) from {len(pruning.layouts)} of {len(plan.layers)} layers"
    )


def _pruning(settings: RunSettings) -> PruningCallback:
    shared: dict[str, Any] = {
        "crossbar": settings.crossbar,
        "mapping": settings.mapping,
        "grain": settings.grain.name,
        "ratio": settings.ratio,
        "schedule": settings.schedule,
        "budget": settings.budget,
        "include": settings.include,
        "exclude": settings.exclude,
        "root": "net",
        "seed": settings.seed,
    }
    procedure = settings.procedure
    if procedure.name == "per_step":
        return CrossbarPruning(settings=settings.solver, **shared)
    layerwise = LayerwiseSettings(
        *(settings.solver.name, settings.reorder, procedure.refit),
        *(procedure.damping, procedure.positions),
    )
    if procedure.name == "both":
        return BothPruning(
            settings=settings.solver,
            layerwise=layerwise,
            first=procedure.first,
            calibration_images=procedure.calibration_images,
            **shared,
        )
    shared |= {"settings": layerwise, "calibration_images": procedure.calibration_images}
    if procedure.name == "layerwise":
        return LayerwisePruning(**shared)
    if procedure.name == "held":
        return HeldRun(procedure.run, **shared)
    penalised = "removed" if procedure.name == "mask_sparsity" else "all"
    return PenalisedPruning(penalise=penalised, strength=procedure.strength, **shared)


def _trainer(
    config: DictConfig,
    pruning: PruningCallback,
    ours: list[pl.Callback],
    loggers: list[Logger],
) -> pl.Trainer:
    bar = sys.stdout.isatty() and not is_sweep()  # a sweep has one of its own, over all jobs
    shown = progress_callbacks(Path(config.paths.output_dir), bar)
    callbacks = [*ours, *shown, *instantiate(config.callbacks).values()]
    if not loggers:  # it would raise without one
        callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]
    _check_devices(config)
    epochs = config.trainer.max_epochs
    with open_dict(config):
        config.trainer.max_epochs = epochs or math.ceil(pruning.schedule.epochs)
    return instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=loggers or False,
        enable_progress_bar=bar,
    )


def _check_devices(config: DictConfig) -> None:
    several = config.trainer.get("devices", 1) not in (1, "1", "auto")
    launcher = HydraConfig.get().launcher._target_
    if several and is_sweep() and "submitit" not in launcher:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} in a sweep: Lightning would start the whole "
            "sweep again for each device. Give each job processes of its own: "
            "hydra/launcher=submitit_local (or submitit_slurm), or run the jobs one by one"
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


def _labels(config: DictConfig, settings: RunSettings, ratio: float) -> dict[str, Any]:
    """What a summary says of how the run was made."""
    choices = HydraConfig.get().runtime.choices
    return {
        "model": config.model.name,
        "data": choices["data"],
        "crossbar": str(settings.crossbar),
        "mapping": choices["mapping"],
        "grain": settings.grain.name,
        "ratio": ratio,
        "seed": settings.seed,
        "solver": settings.solver.name,
        "procedure": settings.procedure.name,
        "budget": settings.budget.name,
        "reorder": settings.reorder,
        **({"method": choices["method"]} if choices.get("method") else {}),
    }


def fix_randomness(seed: int) -> None:
    """Every job of a sweep starts alike, whatever the job before it in this process did."""
    pl.seed_everything(seed, workers=True, verbose=False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = False


def quieten_lightning() -> None:
    """Its hardware lines, tips and own deprecations say nothing about this run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (".*isinstance.treespec, LeafSpec.*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", message, module="pytorch_lightning")


def _plain(config: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
