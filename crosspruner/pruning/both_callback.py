"""BothPruning: layer by layer first, then step by step while the network trains on."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar
from crosspruner.pruning.budget import check_ratio, settle, units_of
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.layerwise_callback import agreed_batches, bare_copy, calibration_batches
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.procedure import prune_network
from crosspruner.pruning.processes import copy_first
from crosspruner.pruning.schedule import Phase


class BothPruning(CrossbarPruning):
    """Removes a share of the crossbars layer by layer at once, the others one by one in training.

    At the first step of the prune phase the layer-wise procedure, with its global budget and its
    refit, removes `first` of what is to go. Each layer then goes on to give in proportion to what
    it gave, while masks move with every step, down to the exact budget.

    Args:
        crossbar, given: what `CrossbarPruning` takes; its budget is "uniform" in name only, the
            layers' shares are those of the layer-wise part.
        layerwise: solver and refit of the layer-wise part; None = the defaults.
        first: share of the removals that comes at once, in (0, 1).
        calibration_images: images of the layer-wise part, >= 1.

    Raises:
        ConfigError: an argument is out of range.

    Source: LGD with RPP layer by layer, Liang et al. 2018; the two parts in one run are ours.
    """

    def __init__(
        self,
        crossbar: Crossbar | str,
        *,
        layerwise: LayerwiseSettings | None = None,
        first: float = 0.7,
        calibration_images: int = 512,
        **given: Any,
    ) -> None:
        super().__init__(crossbar, **given)
        if not 0 < first < 1 or calibration_images < 1:
            raise ConfigError(
                f"procedure.first={first} must lie between 0 and 1, calibration_images="
                f"{calibration_images} be 1 or more"
            )
        self.layerwise = layerwise or LayerwiseSettings()
        if self.layerwise.reorder != "none" or self.how.name != "uniform":
            raise ConfigError("procedure=both needs reorder=none and budget=uniform")
        self.first = first
        self.calibration_images = calibration_images
        self.begun = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        due = self.phase_at(trainer.global_step) is Phase.PRUNE
        if due and not self.begun and not self.frozen:
            self.remove_first(trainer, pl_module)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def remove_first(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The layer-wise part; also says what each layer keeps in the end."""
        assert self.dense_plan is not None
        network, plan, layouts = self.network(pl_module), self.dense_plan, self.layouts
        batches = agreed_batches(calibration_batches(trainer, self.calibration_images), network)
        copy = bare_copy(network)
        result = prune_network(
            *(copy, bare_copy(network), plan, layouts, self.first * self.ratio, batches),
            *(self.layerwise, BudgetSettings("global"), self.generator),
        )
        network.load_state_dict(copy.state_dict())
        copy_first(network)
        unit, blocks, most = units_of(layouts)
        kept = [layout.blocks_of(result.masks[name]) for name, layout in layouts.items()]
        target = check_ratio(plan, layouts, self.ratio)
        wanted = in_proportion(blocks - blocks.new_tensor(kept), blocks, unit, most, target)
        final = blocks - settle(wanted, unit, most, target)
        self.blocks = dict(zip(layouts, final.tolist(), strict=True))
        self.set_masks(result.masks)
        for layer in self.layers.values():
            layer.dormant.zero_()  # the refit has made up for what went
        self.begun = True

    def share_removed(self, ramp: float) -> float:
        return self.first + (1 - self.first) * ramp

    def extra_state(self) -> dict[str, Any]:
        state = super().extra_state()
        return {"states": state, "begun": self.begun, "blocks": dict(self.blocks)}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        super().restore_extra(saved["states"])
        self.begun, self.blocks = saved["begun"], saved["blocks"]


def in_proportion(
    gone: Tensor, blocks: Tensor, unit: Tensor, most: Tensor, target: float
) -> Tensor:
    """Blocks to remove in all, in proportion to those that went, as far as each layer can.

    Args:
        gone: (L,) blocks that went; a hundredth of a layer's blocks counts beside them, so that one
            that gave nothing may give if the others cannot.
        blocks, unit, most: (L,) of `budget.units_of`.
        target: crossbars to remove.

    Returns:
        (L,) with fractions.
    """
    share = gone.double() + 0.01 * blocks.double()
    low, high = 0.0, float((most / share).max())
    for _ in range(60):  # bisection: what is given grows with the factor
        factor = (low + high) / 2
        given = torch.minimum(factor * share, most.double())
        low, high = (factor, high) if float((given * unit).sum()) < target else (low, factor)
    return torch.minimum(high * share, most.double())
