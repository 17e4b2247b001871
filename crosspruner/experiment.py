"""One run, from a composed configuration to a run folder.

configuration -> data -> network -> plan -> fit (dense, prune, fine-tune) -> test -> run folder
"""

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors.torch import load_file

from crosspruner.config import RunSettings, run_settings
from crosspruner.errors import ConfigError, CrossprunerError
from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.snapshot import DenseSnapshot
from crosspruner.reporting.console import print_crossbars
from crosspruner.reporting.layers import layer_table
from crosspruner.reporting.page import write_run_report
from crosspruner.reporting.results import Outcome, write_results
from crosspruner.training import Classifier, build_model, load_weights
from crosspruner.training.data.base import ImageData
from crosspruner.training.progress import progress_callbacks

log = logging.getLogger(__name__)


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
    with _recorded(folder):
        return _run(config, run_settings(config), folder)


def _run(config: DictConfig, settings: RunSettings, folder: Path) -> float:
    started = time.monotonic()
    _fix_randomness(settings.seed)
    data: ImageData = instantiate(config.data)
    data.prepare_data()
    data.setup()
    network = build_model(
        **_plain(config.model, leave_out=("weights",)),
        num_classes=data.num_classes,
        image_size=data.image_size,
        in_channels=data.in_channels,
    )
    if config.model.weights is not None:
        log.info("%s", load_weights(network, config.model.weights))

    pruning = _pruning(settings)
    input_shape = (data.in_channels, *data.image_size)
    plan = pruning.prepare(network, input_shape)
    log.info("the plan before training\n%s", plan.table())

    module = Classifier(
        network,
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.lr_schedule) if config.lr_schedule else None,
        seed=settings.seed,
    )
    snapshot = DenseSnapshot(folder / "checkpoints" / "dense.safetensors", pruning)
    trainer = _trainer(config, settings, [pruning, snapshot], [instantiate(config.logger.csv)])
    trainer.fit(module, datamodule=data, ckpt_path=_checkpoint(settings))
    if trainer.interrupted:
        raise KeyboardInterrupt
    outcome = _judge(trainer, module, data, pruning, snapshot)
    if trainer.is_global_zero:
        seconds = time.monotonic() - started
        write_results(folder, network, outcome, _labels(config, settings), seconds)
        page = write_run_report(folder)
        print_crossbars(layer_table(outcome.plan), settings.ratio)
        log.info("accuracy %s -> %.4f, report %s", outcome.dense_accuracy, outcome.accuracy, page)
    return outcome.accuracy


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
    config: DictConfig, settings: RunSettings, ours: list[pl.Callback], loggers: list[Any]
) -> pl.Trainer:
    callbacks = [*ours, *progress_callbacks(), *instantiate(config.callbacks).values()]
    if not loggers:  # it would raise without one
        callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]
    epochs = config.trainer.max_epochs
    with open_dict(config):
        config.trainer.max_epochs = epochs or math.ceil(settings.schedule.epochs)
    return instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=loggers or False,
        enable_progress_bar=sys.stdout.isatty(),
    )


def _checkpoint(settings: RunSettings) -> str | None:
    if settings.ckpt_path is not None and not Path(settings.ckpt_path).is_file():
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
    }


def _fix_randomness(seed: int) -> None:
    """Every job of a sweep starts alike, whatever the job before it in this process did."""
    pl.seed_everything(seed, workers=True, verbose=False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = False


def _plain(config: DictConfig, leave_out: tuple[str, ...]) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in leave_out}


@contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """Leave DONE in the run folder, or FAILED with the message."""
    done, failed = folder / "DONE", folder / "FAILED"
    failed.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        message = str(error) or type(error).__name__
        failed.write_text(message + "\n")
        expected = isinstance(error, CrossprunerError | KeyboardInterrupt | SystemExit)
        logging.getLogger("crosspruner.failure").error(message, exc_info=not expected)
        raise
    done.write_text("")
