"""CrossbarPruning: the Lightning callback that prunes for crossbars while a model trains."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, MappingSpec
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.pruning.step_solver import (
    STEP_SOLVERS,
    LayerState,
    StepSettings,
    relaxed_projection,
)

STEP_BUDGETS = ("uniform", "per_layer")
"""Those that are known before any image is seen."""


class CrossbarPruning(PruningCallback):
    """Removes a fraction of a model's compute crossbars while it trains.

    Each optimizer step moves the solver's state of every prunable layer, projects it onto the
    crossbars that the schedule leaves the layer at that step, and makes the pruned weights exactly
    zero. At the end of the prune phase the masks freeze at the exact budget.

    Args:
        crossbar, mapping, grain, ratio, schedule, budget, include, exclude, input_shape, root,
            seed: see `PruningCallback`.
        settings: the solver and its steps; None = `lgd_rpp` on the reconstruction objective.

    Raises:
        ConfigError: an argument is out of range.
        BudgetError: (when fitting starts) the ratio cannot be met.

    Source: LGD and RPP each step, Liang et al. 2018; the curvature state is our reading (design,
    sections 4.4 and 4.8).
    """

    def __init__(
        self,
        crossbar: Crossbar | str,
        mapping: MappingSpec | str = "semifolded",
        grain: str = "column",
        ratio: float = 0.5,
        schedule: PruningSchedule | None = None,
        settings: StepSettings | None = None,
        budget: BudgetSettings | str = "uniform",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        input_shape: Sequence[int] | None = None,
        root: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__(
            *(crossbar, mapping, grain, ratio, schedule, budget),
            *(include, exclude, input_shape, root, seed),
        )
        self.settings = settings or StepSettings()
        if self.settings.name not in STEP_SOLVERS:
            raise ConfigError(
                f"solver={self.settings.name} works layer by layer (procedure=layerwise, "
                f"crosspruner.prune): while training use one of {', '.join(STEP_SOLVERS)}"
            )
        if self.how.name not in STEP_BUDGETS:
            raise ConfigError(
                f"budget={self.how.name} works layer by layer (procedure=layerwise, "
                f"crosspruner.prune): while training use one of {', '.join(STEP_BUDGETS)}"
            )
        if not self.schedule.prune_epochs:
            raise ConfigError("schedule.prune_epochs=0: pruning while training needs above 0")
        self.states: dict[str, LayerState] = {}
        self._pruning = False
        self._watched: list[torch.utils.hooks.RemovableHandle] = []

    def begin(self) -> None:
        self.states = {
            name: LayerState(layer, self.settings, self.generator)
            for name, layer in self.layers.items()
        }

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._moments_due(trainer.global_step):
            for state in self.states.values():
                self._watched.append(state.layer.module.register_forward_hook(self._watcher(state)))

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._pruning = self.phase_at(trainer.global_step) is Phase.PRUNE and not self.frozen
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def see_slope(self, name: str, slope: Tensor) -> None:
        if self._pruning:
            self.states[name].step(slope)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        while self._watched:
            self._watched.pop().remove()
        step = trainer.global_step
        if step != self._last_step and self._refresh_due(step):
            self._refresh(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def change_masks(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        point = self.schedule.at(step, self._total_steps)
        masks = {}
        for name, state in self.states.items():
            layout = state.layer.layout
            blocks = layout.blocks - round((layout.blocks - self.blocks[name]) * point.ramp)
            masks[name] = relaxed_projection(
                state.dense, blocks, point.relax, layout, self.generator
            )
        self.set_masks(masks)
        if point.phase is Phase.FINETUNE:
            for state in self.states.values():
                state.moment = state.fisher = state.inverse_blocks = None
            self.freeze(pl_module)

    def _refresh(self, trainer: pl.Trainer) -> None:
        def mean(value: Tensor) -> Tensor:
            return trainer.strategy.reduce(value, reduce_op="mean")

        for state in self.states.values():
            state.average(mean)
            state.refresh()

    def _watcher(self, state: LayerState) -> Any:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            state.watch(inputs[0].detach(), output, self.generator)

        return watch

    def _in_prune_phase(self, step: int) -> bool:
        return (
            self.settings.needs_moments and not self.frozen and self.phase_at(step) is Phase.PRUNE
        )

    def _moments_due(self, step: int) -> bool:
        if not self._in_prune_phase(step):
            return False
        start = self.schedule.boundaries(self._total_steps)[0]
        return step < self._ramp_start() or (step - start) % self.settings.moment_every == 0

    def _refresh_due(self, step: int) -> bool:
        if not self._in_prune_phase(step):
            return False
        since = step - self._ramp_start()
        return since >= 0 and since % self.settings.refresh_every == 0

    def _ramp_start(self) -> int:
        """First step at which something may be removed: the curvature is known by then."""
        start, stop = self.schedule.boundaries(self._total_steps)
        return start + max(1, round((stop - start) * self.schedule.warmup))

    def extra_state(self) -> dict[str, Any]:
        return {name: state.state_dict() for name, state in self.states.items()}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        for name, state in self.states.items():
            if self.frozen:
                state.moment = state.fisher = None
            state.load_state_dict(saved[name])
