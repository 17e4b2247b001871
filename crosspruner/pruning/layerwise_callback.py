"""LayerwisePruning: the Lightning callback that prunes at once, then lets the model fine-tune."""

import copy
import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, MappingSpec
from crosspruner.hardware.attention import layer_module
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.calibration import as_network_takes, read_batches
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.pruning.network_solver import check_network_solver
from crosspruner.pruning.procedure import ProcedureResult, prune_network
from crosspruner.pruning.processes import copy_first, of_first
from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.pruning.schedule import PruningSchedule

log = logging.getLogger(__name__)


class LayerwisePruning(PruningCallback):
    """Removes a fraction of a model's compute crossbars layer by layer, before fine-tuning.

    At the first step after the dense epochs (or when fitting ends, if there is none) every
    prunable layer gets its mask, its refitted weights and its batch-norm statistics from some
    hundred calibration images; the masks are frozen from then on.

    Args:
        crossbar, mapping, grain, ratio, schedule, budget, include, exclude, input_shape, root,
            seed: see `CrossbarPruning`. The prune phase of the schedule takes no steps.
        settings: solver, reorder, refit.
        calibration_images: how many images the moments are taken from, >= 1.
        calibration: batches of images as the network sees them in use; None = of the trainer's
            datamodule (`calibration_batches`), or the first ones of the training loader. Of several
            processes the first one's are taken.

    Raises:
        ConfigError: an argument is out of range.
        BudgetError: (when fitting starts) the ratio cannot be met.

    Source: the layer-wise procedure of Liang et al., IEEE Access 2018, then fine-tuning; see
    `crosspruner.prune` for what is our reading.
    """

    def __init__(
        self,
        crossbar: Crossbar | str,
        mapping: MappingSpec | str = "semifolded",
        grain: str = "column",
        ratio: float = 0.5,
        schedule: PruningSchedule | None = None,
        settings: LayerwiseSettings | None = None,
        budget: BudgetSettings | str = "uniform",
        calibration_images: int = 512,
        calibration: Iterable[Any] | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        input_shape: Sequence[int] | None = None,
        root: str = "",
        seed: int = 0,
    ) -> None:
        schedule = schedule or PruningSchedule()
        super().__init__(
            *(crossbar, mapping, grain, ratio, schedule.at_once(), budget, include, exclude, seed)
        )
        self.find(root, input_shape)
        if calibration_images < 1:
            raise ConfigError(f"calibration_images={calibration_images}: 1 or more are needed")
        self.settings = settings or LayerwiseSettings()
        check_network_solver(self.settings, self.how.name)
        self.calibration_images = calibration_images
        self.calibration = calibration

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        due = trainer.global_step >= self.schedule.boundaries(self.total_steps)[0]
        if due and self.ratio > 0 and not self.frozen:
            self.prune(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.ratio > 0 and not self.frozen:  # no step came after the dense epochs
            self.pruned_at_the_end = True
            self.prune(trainer, pl_module)

    def prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune the module's network now and freeze the masks."""
        network = self.network(pl_module)
        result, pruned_copy = self.decide(trainer, pl_module)
        network.load_state_dict(pruned_copy.state_dict())
        copy_first(network)  # sums on a GPU may differ in their last digits
        self.layouts = result.layouts
        # What was pruned waits at zero: the refit has made up for it.
        self.layers = {
            n: MaskedLayer(layer_module(network, n), layout) for n, layout in self.layouts.items()
        }
        self.set_masks(result.masks)
        self.freeze()

    def decide(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[ProcedureResult, nn.Module]:
        """What the procedure makes of the network as it is now, and its pruned copy."""
        assert self.dense_plan is not None
        network = self.network(pl_module)
        batches = agreed_batches(self._calibration(trainer), network)
        pruned_copy = bare_copy(network)
        result = prune_network(
            *(pruned_copy, bare_copy(network), self.dense_plan, self.layouts, self.ratio),
            *(batches, self.settings, self.how, self.generator),
            evaluate=lambda net: validation_accuracy(net, trainer, pl_module.device),
        )
        return result, pruned_copy

    def change_masks(self, step: int) -> None:
        """Nothing: the masks came before the step."""

    def _calibration(self, trainer: pl.Trainer) -> Iterable[Any]:
        if self.calibration is not None:
            return self.calibration
        return calibration_batches(trainer, self.calibration_images)

    def extra_state(self) -> dict[str, Any]:
        orders = {n: layer.layout.input_order for n, layer in self.layers.items()}
        return {"orders": {n: order for n, order in orders.items() if order is not None}}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        for name, order in saved["orders"].items():
            self.layers[name].reorder(order)


def calibration_batches(trainer: pl.Trainer, images: int) -> Iterable[Any]:
    """Batches of the trainer's datamodule (`calibration_batches`), or the first training ones."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "calibration_batches"):
        return datamodule.calibration_batches(images)
    loader = trainer.train_dataloader
    assert loader is not None
    size = getattr(loader, "batch_size", None) or 1
    return islice(loader, -(-images // size))


def agreed_batches(loader: Iterable[Any], network: nn.Module) -> list[Tensor]:
    """Calibration images that are the same on every process, and the same network to run them on.

    The training loader gives each process images of its own, and the running statistics of batch
    norms have seen those alone: all take what the first process has.

    Args:
        loader: as `read_batches` takes it.
        network: its parameters and buffers become those of the first process.
    """
    copy_first(network)
    return of_first(read_batches(loader, network))


@torch.no_grad()
def validation_accuracy(network: nn.Module, trainer: pl.Trainer, device: torch.device) -> float:
    """Accuracy of a network on the trainer's validation images, 0 to 1, the same on every process.

    Raises:
        ConfigError: the trainer has none.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    loader = trainer.val_dataloaders if datamodule is None else datamodule.val_dataloader()
    if not loader:
        raise ConfigError(
            "budget=sensitivity stops by the validation accuracy: give the trainer val_dataloaders"
        )
    seen = torch.zeros(2, device=device)  # right, all
    for inputs, labels in loader:
        right = network(as_network_takes(inputs, network)).argmax(1) == labels.to(device)
        seen += torch.stack([right.sum(), torch.tensor(len(labels), device=device)])
    seen = trainer.strategy.reduce(seen, reduce_op="sum")  # type: ignore[assignment]
    return float(seen[0] / seen[1])


def bare_copy(network: nn.Module) -> Any:
    """A copy without the trainer that a LightningModule holds on to."""
    trainer = getattr(network, "_trainer", None)
    return copy.deepcopy(network, {id(trainer): None} if trainer is not None else {})
