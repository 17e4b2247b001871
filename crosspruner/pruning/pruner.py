"""A network's layers under masks: plan, budget, zeros that stay zero, state. Knows no trainer."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, MappingSpec, Plan, plan_model
from crosspruner.hardware.attention import has_layer, layer_module
from crosspruner.pruning.budget import check_number, prunable_layers
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.pruning.network_masks import (
    check_resumed,
    crossbars_left,
    masks_of,
    packed_plan,
    put_under,
)
from crosspruner.pruning.processes import is_same_everywhere
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.pruning.seed import seeded
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)


class Pruner:
    """Keeps a network's layers under masks while something trains it.

    The network's `state_dict` keys, shapes and forward pass never change; masks live in the
    pruner's own state, so that a resumed run goes on as if it had never stopped.

    Whoever trains calls, in this order: `prepare`, `bind`, then `before_batch`, `before_step`
    (gradients are there, the optimizer has not stepped) and `after_batch` again and again, with the
    number of optimizer steps that have been taken. `PruningCallback` does so from Lightning's
    hooks, `LoopPruner` from a training loop of one's own.

    Subclasses say what the masks are (`change_masks`) and what more they keep (`extra_state`).

    Args:
        crossbar: a `Crossbar` or text like "256x256".
        mapping: "folded", "semifolded", "unfolded", "liang2018" or a `MappingSpec`.
        grain: "crossbar" or "column".
        ratio: fraction of the model's compute crossbars to remove, in [0, 1).
        schedule: lengths of the phases; None = the defaults.
        budget: how the ratio is divided among the layers, by name or with its settings. With
            "per_layer", `ratio` is what the layers' ratios come to.
        include: dotted-name patterns of the layers that may be pruned; None = all.
        exclude: dotted-name patterns of those that may not; None = the first and the last layer.
        seed: of all draws.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        crossbar: Crossbar | str,
        mapping: MappingSpec | str = "semifolded",
        grain: str = "column",
        ratio: float = 0.5,
        schedule: PruningSchedule | None = None,
        budget: BudgetSettings | str = "uniform",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        check_number(ratio)
        if not 0 <= ratio < 1:
            raise ConfigError(f"ratio={ratio} is out of range: give a fraction from 0 to below 1")
        self.crossbar = Crossbar.parse(crossbar) if isinstance(crossbar, str) else crossbar
        self.mapping = MappingSpec.of(mapping)
        self.grain = grain
        self.ratio = ratio
        self.schedule = schedule or PruningSchedule()
        self.how = BudgetSettings.of(budget)
        self.include = include
        self.exclude = exclude
        self.generator = seeded(seed)
        self.dense_plan: Plan | None = None
        self.layouts: dict[str, GroupLayout] = {}
        self.blocks: dict[str, int] = {}
        self.layers: dict[str, MaskedLayer] = {}
        self.frozen = False
        self.churn = 0.0
        self.total_steps = 0
        self.last_step = -1
        self._pending: dict[str, Any] | None = None

    # -- what a subclass does ------------------------------------------------------------------

    def begin(self) -> None:
        """The layers are there, all groups kept."""

    @abstractmethod
    def change_masks(self, step: int) -> None:
        """Set the masks that hold once `step` optimizer steps have been taken, and `churn`."""

    def wants_slopes(self, step: int) -> bool:
        """Whether the next optimizer step, when `step` have been taken, needs `see_slope`."""
        return False

    def see_slope(self, name: str, slope: Tensor) -> None:
        """Take in dLoss/dbeta (U, P) of a layer, before an optimizer step."""

    def extra_state(self) -> dict[str, Any]:
        """Tensors and plain Python that a resumed run needs besides the masks."""
        return {}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""

    # -- what is to be pruned, and what is left of it ------------------------------------------

    def prepare(self, network: nn.Module, input_shape: Sequence[int]) -> Plan:
        """Plan the network and divide the budget; done once, before training.

        Args:
            network: the model to prune.
            input_shape: (C, H, W) of one input.

        Returns:
            The dense plan.

        Raises:
            BudgetError, ConfigError, MappingError: the ratio, a pattern or Kin/Kout cannot be met.
        """
        self.dense_plan = plan_model(
            network,
            input_shape,
            self.crossbar,
            self.mapping,
            self.grain,
            self.include,
            self.exclude,
        )
        self.layouts = prunable_layers(self.dense_plan, self.grain)
        self.blocks, self.ratio = self.how.first_blocks(self.dense_plan, self.layouts, self.ratio)
        return self.dense_plan

    @property
    def masks(self) -> dict[str, Tensor]:
        """Layer name -> (U, P) bool mask, on the CPU."""
        return masks_of(self.layers)

    @property
    def plan(self) -> Plan:
        """The packed plan of what the masks leave."""
        assert self.dense_plan is not None, "prepare() was not called"
        return packed_plan(self.dense_plan, self.layers, self.grain)

    @property
    def compute_crossbars(self) -> int:
        """Compute crossbars that the masks leave, without building the plan."""
        assert self.dense_plan is not None, "prepare() was not called"
        return crossbars_left(self.dense_plan, self.layers)

    @property
    def saved(self) -> float:
        """Fraction of the compute crossbars that went, 0 to 1."""
        assert self.dense_plan is not None, "prepare() was not called"
        return 1 - self.compute_crossbars / self.dense_plan.compute_crossbars

    # -- what a trainer calls ------------------------------------------------------------------

    def bind(self, network: nn.Module) -> None:
        """Take hold of the network's layers, on the device that they train on.

        The same network keeps its masks; another one starts anew.
        """
        if any(
            not has_layer(network, name) or layer_module(network, name) is not layer.module
            for name, layer in self.layers.items()
        ):
            self.layers = {}  # what the last network had does not concern this one
        if not self.layers:
            self.frozen = False
            self.layers = {
                name: MaskedLayer(layer_module(network, name), layout)
                for name, layout in self.layouts.items()
            }
            self.begin()
        if self._pending is not None:
            self._restore(self._pending)
            self._pending = None

    def before_batch(self, step: int) -> None:
        """The next forward pass belongs to the optimizer step after `step` of them."""

    def stop_watching(self) -> None:
        """Take off the network what a subclass has put on it to watch it."""

    def before_step(self, step: int) -> None:
        """Gradients are unscaled, summed over accumulation and averaged over processes."""
        wanted = self.wants_slopes(step)
        for name, layer in self.layers.items():
            if wanted:
                self.see_slope(name, layer.split_gradient())
            else:
                layer.mask_gradient()

    def after_batch(self, step: int) -> bool:
        """Change the masks if the optimizer has stepped, and make pruned weights exactly zero.

        Returns:
            Whether it has; it has not while gradients are being accumulated.
        """
        if step == self.last_step:
            return False
        self.last_step = step
        self.churn = 0.0
        if not self.frozen and self.phase_at(step) is not Phase.DENSE:
            self.change_masks(step)
        for layer in self.layers.values():
            layer.enforce()
        return True

    def phase_at(self, step: int) -> Phase:
        """The phase that holds once `step` optimizer steps have been taken."""
        if self.ratio == 0:
            return Phase.DENSE
        return self.schedule.at(step, self.total_steps).phase

    def freeze(self) -> None:
        """The masks stay as they are from now on, on every process alike."""
        self.frozen = True
        for name, layer in self.layers.items():
            assert is_same_everywhere(layer.mask.int()), f"processes hold unequal masks of {name}"
        log.info("masks frozen at %d compute crossbars", self.compute_crossbars)

    def set_masks(self, masks: dict[str, Tensor]) -> None:
        """Put the layers under new masks and note the share of groups that changed."""
        self.churn = put_under(self.layers, masks)

    def metrics(self, step: int) -> dict[str, float]:
        """Where pruning stands after `step` optimizer steps, by the names that loggers show."""
        assert self.dense_plan is not None
        dense, left = self.dense_plan.compute_crossbars, self.compute_crossbars
        point = self.schedule.at(step, self.total_steps)
        return {
            "prune/phase": float(self.phase_at(step - 1)),  # of the step that was just taken
            "prune/ratio": 1 - left / dense,
            "prune/relax": point.relax,
            "prune/mask_churn": self.churn,
            "crossbars/compute": float(left),
            "crossbars/saved": float(dense - left),
        }

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python: masks, waiting weights, the generator, the solver's state."""
        return {
            "grain": self.grain,
            "ratio": self.ratio,
            "frozen": self.frozen,
            "generator": self.generator.get_state(),
            "layers": {name: layer.state_dict() for name, layer in self.layers.items()},
            "extra": self.extra_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict` once the network is bound.

        Raises:
            CheckpointError: (when it is bound) the state is of another model, grain or ratio.
        """
        self._pending = state_dict

    def _restore(self, saved: dict[str, Any]) -> None:
        check_resumed(saved, self.layouts, self.grain, self.ratio)
        self.frozen = saved["frozen"]
        self.generator.set_state(saved["generator"])
        for name, layer in self.layers.items():
            layer.load_state_dict(saved["layers"][name])
        self.restore_extra(saved["extra"])
