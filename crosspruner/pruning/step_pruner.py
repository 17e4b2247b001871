"""Pruning while a network trains: what happens around each optimizer step. Knows no trainer."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, MappingSpec
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.processes import is_distributed, mean_of_all
from crosspruner.pruning.pruner import Pruner
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.pruning.step_settings import STEP_SOLVERS, StepSettings
from crosspruner.pruning.step_solver import StepState, relaxed_projection

PATCHES = 8
"""Patches per row of a moment that it has seen, at the least, when something may be removed."""

STEP_BUDGETS = ("uniform", "per_layer")
"""Those that are known before any image is seen."""


class StepPruner(Pruner):
    """Each optimizer step moves the masks, until they freeze at the exact budget.

    A step moves the solver's state of every prunable layer, projects it onto the crossbars that the
    schedule leaves the layer at that step, and makes the pruned weights exactly zero.

    Args:
        crossbar, mapping, grain, ratio, schedule, budget, include, exclude, seed: see `Pruner`.
        settings: the solver and its steps; None = `lgd_rpp` on the reconstruction objective.

    Raises:
        ConfigError: an argument is out of range.

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
        seed: int = 0,
    ) -> None:
        super().__init__(crossbar, mapping, grain, ratio, schedule, budget, include, exclude, seed)
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
        self.states: dict[str, StepState] = {}
        self._watched: list[torch.utils.hooks.RemovableHandle] = []
        self._uncompiled: Any = None

    def begin(self) -> None:
        self.states = {
            name: StepState(layer, self.settings, self.generator)
            for name, layer in self.layers.items()
        }

    def before_batch(self, step: int) -> None:
        if not self._moments_due(step):
            return
        for state in self.states.values():
            watcher = self._watcher(state, self._rows(state, step))
            self._watched.append(state.layer.module.register_forward_hook(watcher))
        # A compiled network does not see hooks that came after it was compiled.
        if self._uncompiled is None and "torch._dynamo" in sys.modules:
            self._uncompiled = torch.compiler.set_stance("force_eager")

    def wants_slopes(self, step: int) -> bool:
        return self.phase_at(step) is Phase.PRUNE and not self.frozen

    def before_step(self, step: int) -> None:
        if self._watched and is_distributed():
            # It weighs the state at every step: unlike moments it cannot wait for a refresh.
            for state in self.states.values():
                if state.fisher is not None:
                    average = state.fisher.average.to(state.layer.weight.device)
                    state.fisher.average = mean_of_all(average)
        super().before_step(step)

    def see_slope(self, name: str, slope: Tensor) -> None:
        self.states[name].step(slope)

    def after_batch(self, step: int) -> bool:
        self.stop_watching()
        if step != self.last_step and self._refresh_due(step):
            self._refresh()
        return super().after_batch(step)

    def change_masks(self, step: int) -> None:
        point = self.schedule.at(step, self.total_steps)
        share = self.share_removed(point.ramp)
        masks = {}
        for name, state in self.states.items():
            layout = state.layer.layout
            blocks = layout.blocks - round((layout.blocks - self.blocks[name]) * share)
            masks[name] = relaxed_projection(
                state.dense, blocks, point.relax, layout, self.generator
            )
        self.set_masks(masks)
        if point.phase is Phase.FINETUNE:
            self.freeze()

    def share_removed(self, ramp: float) -> float:
        """Share of all removals that is made where the schedule's ramp stands at `ramp`, 0 to 1."""
        return ramp

    def freeze(self) -> None:
        for state in self.states.values():
            state.moment = state.fisher = state.inverse_blocks = None
        super().freeze()

    def stop_watching(self) -> None:
        """Take the hooks off the layers."""
        while self._watched:
            self._watched.pop().remove()
        if self._uncompiled is not None:
            self._uncompiled.__exit__(None, None, None)
            self._uncompiled = None

    def _refresh(self) -> None:
        for state in self.states.values():
            if is_distributed():  # alone, what was seen would only be rounded to float32
                state.average(mean_of_all)
            state.refresh()

    def _watcher(self, state: StepState, rows: int) -> Any:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled():
                state.watch(inputs[0].detach(), output, self.generator, rows)

        return watch

    def _rows(self, state: StepState, step: int) -> int:
        """Patches to draw: on a short schedule more of them, so that the first moment is one."""
        rows = self.settings.moment_rows
        if state.moment is None or step >= self._ramp_start():
            return rows
        start = self.schedule.boundaries(self.total_steps)[0]
        return max(rows, math.ceil(PATCHES * state.moment.side / (self._ramp_start() - start)))

    def _in_prune_phase(self, step: int) -> bool:
        return (
            self.settings.needs_moments and not self.frozen and self.phase_at(step) is Phase.PRUNE
        )

    def _moments_due(self, step: int) -> bool:
        if not self._in_prune_phase(step):
            return False
        start = self.schedule.boundaries(self.total_steps)[0]
        return step < self._ramp_start() or (step - start) % self.settings.moment_every == 0

    def _refresh_due(self, step: int) -> bool:
        if not self._in_prune_phase(step):
            return False
        since = step - self._ramp_start()
        return since >= 0 and since % self.settings.refresh_every == 0

    def _ramp_start(self) -> int:
        """First step at which something may be removed: the curvature is known by then."""
        start, stop = self.schedule.boundaries(self.total_steps)
        return start + max(1, round((stop - start) * self.schedule.warmup))

    def extra_state(self) -> dict[str, Any]:
        return {name: state.state_dict() for name, state in self.states.items()}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        for name, state in self.states.items():
            if self.frozen:
                state.moment = state.fisher = None
            state.load_state_dict(saved[name])
