"""The parts of a run, each made from what its configuration says of it."""

import logging
import math
import sys
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
from torch import nn

from crosspruner.config import RunSettings
from crosspruner.errors import ConfigError, CrossprunerError
from crosspruner.pruning.both_callback import BothPruning
from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.held_run import HeldRun, dense_weights
from crosspruner.pruning.layerwise_callback import LayerwisePruning
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.penalised_callback import PenalisedPruning
from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.reporting.tracking import TrackingSettings, tracked
from crosspruner.training import Classifier, build_model
from crosspruner.training.data.base import ImageData
from crosspruner.training.data.mixing import Mixing
from crosspruner.training.precision import bfloat16_is_emulated, slow_bfloat16
from crosspruner.training.progress import progress_callbacks

log = logging.getLogger(__name__)


def open_data(config: DictConfig) -> ImageData:
    """The data set of the configuration, set up."""
    data = _made(config, "data")
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


def initial_weights(config: DictConfig, settings: RunSettings) -> str | Path | None:
    """The file of the weights to begin with; None = as the seed initialises them."""
    if config.model.weights is None and settings.procedure.name == "held":
        return dense_weights(settings.procedure.run)
    weights: str | None = config.model.weights
    return weights


def module_of(
    config: DictConfig, settings: RunSettings, network: nn.Module, data: ImageData
) -> Classifier:
    """The LightningModule that trains the network, with its optimizer and what shapes its loss."""
    how = settings.training
    mixing = Mixing(data.num_classes, how.mixup, how.cutmix, how.mix_share)
    if settings.distill > 0 and settings.ratio == 0:
        log.warning("distill=%g does nothing at ratio=0: nothing is pruned", settings.distill)
    return Classifier(
        network,
        optimizer=_optimizer_of(config),
        scheduler=_made(config, "lr_schedule") if config.lr_schedule else None,
        label_smoothing=how.label_smoothing,
        channels_last=how.channels_last,
        seed=settings.seed,
        mixing=mixing,
        distill=settings.distill,
        temperature=how.distill_temperature,
        compile=how.compile,
        compile_backend=how.compile_backend,
    )


def _optimizer_of(config: DictConfig) -> Any:
    """What makes the optimizer, tried on a weight of its own: values are refused only then."""
    make = _made(config, "optimizer")
    try:
        make([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        shown = ", ".join(
            f"optimizer.{key}={value}"
            for key, value in config.optimizer.items()
            if not str(key).startswith("_")
        )
        raise ConfigError(f"{shown}: {config.optimizer._target_} refuses: {error}") from error
    return make


def pruning_of(settings: RunSettings) -> PruningCallback:
    """The callback of the run's procedure."""
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


def trainer_of(
    config: DictConfig,
    pruning: PruningCallback,
    ours: list[pl.Callback],
    loggers: list[Logger],
) -> pl.Trainer:
    """The trainer, with our callbacks before those of the configuration.

    Raises:
        ConfigError: several devices in a sweep whose jobs share a process, or a value that
            Lightning does not take.
    """
    bar = sys.stdout.isatty() and not is_sweep()  # a sweep has one of its own, over all jobs
    shown = progress_callbacks(Path(config.paths.output_dir), bar)
    callbacks = [*ours, *shown, *_made(config, "callbacks").values()]
    if not loggers:  # it would raise without one
        callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]
    _check_devices(config)
    _check_epochs(config)
    if config.trainer.max_epochs is None:
        with open_dict(config):
            config.trainer.max_epochs = math.ceil(pruning.schedule.epochs)
    given = {"callbacks": callbacks, "logger": loggers or False, "enable_progress_bar": bar}
    trainer: pl.Trainer = _made(config, "trainer", **given)
    if "bf16" in str(trainer.precision) and bfloat16_is_emulated(trainer.strategy.root_device):
        log.warning(slow_bfloat16(f"trainer.precision={config.trainer.precision}"))
    return trainer


def _check_devices(config: DictConfig) -> None:
    several = config.trainer.get("devices", 1) not in (1, "1", "auto")
    launcher = HydraConfig.get().launcher._target_
    if several and is_sweep() and "submitit" not in launcher:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} in a sweep: Lightning would start the whole "
            "sweep again for each device. Give each job processes of its own: "
            "hydra/launcher=submitit_local (or submitit_slurm), or run the jobs one by one"
        )


def _check_epochs(config: DictConfig) -> None:
    epochs, steps = config.trainer.max_epochs, config.trainer.get("max_steps", -1)
    if epochs is None or (epochs == -1 and isinstance(steps, int) and steps > 0):
        return
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(
            f"trainer.max_epochs={epochs}: give a whole number of 1 or more, or null for the "
            "epochs of the schedule; schedule=none procedure=layerwise trains nothing"
        )


@contextmanager
def loggers_of(
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


def is_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def _made(config: DictConfig, group: str, **given: Any) -> Any:
    """What a group of the configuration stands for; errors are those of the class itself.

    Raises:
        CrossprunerError: as the class raises it.
        ConfigError: the class, of a library, refuses a value.
    """
    try:
        return instantiate(config[group], **given)
    except InstantiationException as error:
        if isinstance(error.__cause__, CrossprunerError):
            raise error.__cause__ from None
        if error.__cause__ is None:
            raise
        raise ConfigError(f"{group}: {error.__cause__}") from error


def _plain(config: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
