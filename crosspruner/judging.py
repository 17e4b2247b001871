"""What a run's networks score: on the test split, read at the end, and on chips."""

import logging
from dataclasses import replace

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Plan
from crosspruner.hardware.cells import check_cells
from crosspruner.hardware.effective import without_weight
from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.pruning.snapshot import Snapshot
from crosspruner.reporting.results import Outcome
from crosspruner.training import Classifier
from crosspruner.training.data.base import ImageData
from crosspruner.training.on_device import DeviceSettings, accuracy_on_device

log = logging.getLogger(__name__)


def judge(
    trainer: pl.Trainer,
    module: Classifier,
    data: ImageData,
    pruning: PruningCallback,
    snapshots: tuple[Snapshot, Snapshot],
) -> Outcome:
    """Read the test split for the pruned network, the dense one, and the pruned one before it was
    fine-tuned."""
    chosen_by: float | Tensor | None = trainer.callback_metrics.get("val/acc")
    keeper = trainer.checkpoint_callback
    if pruning.pruned_at_the_end:  # no epoch came after, so none was validated or kept
        chosen_by = trainer.validate(module, datamodule=data, verbose=False)[0]["val/acc"]
    elif isinstance(keeper, ModelCheckpoint) and keeper.best_model_path:
        state = torch.load(keeper.best_model_path, map_location="cpu", weights_only=True)
        module.load_state_dict(state["state_dict"])
        chosen_by = keeper.best_model_score
    pruned = {key: value.clone() for key, value in module.net.state_dict().items()}
    accuracy = _test(trainer, module, data)
    earlier: list[float | None] = [accuracy, accuracy]
    if pruning.ratio > 0:
        earlier = [_test_earlier(trainer, module, data, snapshot) for snapshot in snapshots]
        if earlier[0] is None:
            log.warning("no dense snapshot beside the checkpoint: dense accuracy is unknown")
    module.net.load_state_dict(pruned)
    val_accuracy = None if chosen_by is None else float(chosen_by)
    return Outcome(
        earlier[0], accuracy, pruning.plan, pruning.masks, val_accuracy, oneshot_accuracy=earlier[1]
    )


def _test_earlier(
    trainer: pl.Trainer, module: Classifier, data: ImageData, snapshot: Snapshot
) -> float | None:
    if not snapshot.path.exists():
        return None
    module.net.load_state_dict(load_file(snapshot.path))
    return _test(trainer, module, data)


def check_device(device: DeviceSettings, plan: Plan, network: nn.Module) -> None:
    """Stop before training if the device does not fit the crossbar, or the network cannot be
    trained on it; say what fits badly."""
    if device.train and not device.on_weights.changes_weights:
        raise ConfigError(
            f"device.train=true, but device={device.name} does nothing to weights: choose another "
            "device, or an effect, for example device.lognormal=0.1"
        )
    if device.train and (names := without_weight(plan, network)):
        raise ConfigError(
            "device.train=true puts a chip's weights in place of the network's, which it cannot do "
            f"for {', '.join(names[:5])}: they are computed in each pass, or a Conv3d's. Set "
            "device.train=false: the pruned network is judged on the device all the same"
        )
    if device.is_ideal:
        return
    check_cells(device, plan.crossbar)
    if device.is_random and not plan.crossbar.differential:
        log.warning(
            "device=%s varies from cell to cell, and weights are stored shifted, so that the shift "
            "varies as well: crossbar.differential=true stores them in pairs",
            device.name,
        )


def judge_on_device(
    outcome: Outcome, network: nn.Module, data: ImageData, device: DeviceSettings
) -> Outcome:
    """The outcome with what the pruned network reaches on chips, where the device is not ideal."""
    if device.is_ideal:
        return outcome
    # ideal with keys of its own, device.lognormal=0.1, is no longer what its name says
    name = "own device" if device.name == "ideal" else device.name
    log.info("judging the pruned network on %d chip(s) of %s", device.seeds, name)
    chips = accuracy_on_device(outcome.plan, network.cpu(), data, device)
    return replace(outcome, device=name, device_accuracies=tuple(chips.tolist()))


def _test(trainer: pl.Trainer, module: Classifier, data: ImageData) -> float:
    return float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])
