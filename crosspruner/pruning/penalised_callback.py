"""PenalisedPruning: the Lightning callback that shrinks groups while training, then cuts them."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar
from crosspruner.pruning.group_penalty import shrink
from crosspruner.pruning.layerwise_callback import LayerwisePruning
from crosspruner.pruning.schedule import Phase, PruningSchedule

PENALISED = ("removed", "all")


class PenalisedPruning(LayerwisePruning):
    """Penalises the norms of groups during the prune phase, then cuts at the exact budget.

    penalise="removed" (MaskSparsity): at the first step of the prune phase the layer-wise procedure
    says which groups shall go, on a copy. Only those are penalised; the others train on as they
    are. When the phase ends they are near zero, and are cut.

    penalise="all" (group lasso): every group is penalised alike; when the phase ends, the
    layer-wise procedure chooses on what the penalty has left, by `settings.solver` and with
    `settings.refit` or without.

    Each step of the phase is followed by a proximal step on the penalty, of the same size.

    Args:
        penalise: one of PENALISED.
        strength: of the penalty, > 0: how many times the phase would take the weights of a layer,
            by their root mean square when it begins, if nothing held them.
        schedule: its prune phase is the phase of the penalty, above 0 epochs.
        crossbar, given: what `LayerwisePruning` takes.

    Raises:
        ConfigError: an argument is out of range.
        BudgetError: (when fitting starts) the ratio cannot be met.

    Source: "removed": MaskSparsity, Jiang et al. 2022 (arXiv 2201.06776), who penalise the scales
    of batch norms; groups of weights instead of scales, and masks from the layer-wise procedure
    instead of a threshold, are our reading. "all": group lasso, Wen et al. 2016; the exact budget
    at the end is ours.
    """

    def __init__(
        self,
        crossbar: Crossbar | str,
        *,
        penalise: str = "removed",
        strength: float = 3.0,
        schedule: PruningSchedule | None = None,
        **given: Any,
    ) -> None:
        schedule = schedule or PruningSchedule()
        super().__init__(crossbar, schedule=schedule, **given)
        self.schedule = schedule  # the prune phase takes steps here
        if penalise not in PENALISED:
            raise ConfigError(f"penalise={penalise!r} is unknown: use one of {PENALISED}")
        if strength <= 0:
            raise ConfigError(f"procedure.strength={strength}: the penalty must be above 0")
        if self.ratio > 0 and not schedule.prune_epochs:
            raise ConfigError("schedule.prune_epochs=0: a penalty while training needs above 0")
        self.penalise = penalise
        self.strength = strength
        self.chosen: dict[str, Tensor] = {}
        self.scales: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.before_batch(trainer.global_step)
        if self.ratio == 0 or self.frozen:
            return
        phase = self.phase_at(trainer.global_step)
        if phase is Phase.PRUNE and not self.chosen:
            self._choose(trainer, pl_module)
        elif phase is Phase.FINETUNE:
            self.cut(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.ratio > 0 and not self.frozen:  # no step came after the prune phase
            self.pruned_at_the_end = True
            self.cut(trainer, pl_module)

    def cut(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what the penalty has shrunk, and freeze the masks."""
        if self.penalise == "all":
            self.prune(trainer, pl_module)
            return
        if not self.chosen:
            self._choose(trainer, pl_module)
        self.set_masks(self.chosen)
        for layer in self.layers.values():
            layer.dormant.zero_()  # what little was left does not wait to come back
        self.freeze()

    def _choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.scales = {
            name: float(layer.weight.detach().float().square().mean().sqrt())
            for name, layer in self.layers.items()
        }
        if self.penalise == "all":
            self.chosen = {n: torch.zeros_like(m) for n, m in self.masks.items()}
            return
        result = self.decide(trainer, pl_module)[0]
        for name, order in result.orders.items():
            self.layers[name].reorder(order)
        self.layouts = result.layouts
        self.chosen = result.masks

    def after_batch(self, step: int) -> bool:
        stepped = super().after_batch(step)
        if stepped and not self.frozen and self.chosen and self.phase_at(step - 1) is Phase.PRUNE:
            start, stop = self.schedule.boundaries(self.total_steps)
            for name, layer in self.layers.items():
                amount = self.strength * self.scales[name] / (stop - start)
                shrink(layer, ~self.chosen[name], amount)
        return stepped

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "chosen": dict(self.chosen), "scales": self.scales}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        super().restore_extra(saved)
        self.layouts = {name: layer.layout for name, layer in self.layers.items()}
        self.chosen, self.scales = saved["chosen"], saved["scales"]
