"""CrossbarPruning: the Lightning callback that prunes for crossbars while a model trains."""

from collections.abc import Sequence

import pytorch_lightning as pl

from crosspruner.hardware import Crossbar, MappingSpec
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.pruning.schedule import PruningSchedule
from crosspruner.pruning.step_pruner import StepPruner
from crosspruner.pruning.step_settings import StepSettings


class CrossbarPruning(StepPruner, PruningCallback):
    """Removes a fraction of a model's compute crossbars while Lightning trains it.

    Each optimizer step moves the solver's state of every prunable layer, projects it onto the
    crossbars that the schedule leaves the layer at that step, and makes the pruned weights exactly
    zero. At the end of the prune phase the masks freeze at the exact budget.

    The model's `state_dict` keys, shapes and forward pass never change; masks live in the
    callback's own state, so that a resumed run goes on as if it had never stopped. `crosspruner.
    attach` does the same in a training loop without Lightning.

    Args:
        crossbar: a `Crossbar` or text like "256x256".
        mapping: "folded", "semifolded", "unfolded", "liang2018" or a `MappingSpec`.
        grain: "crossbar" or "column".
        ratio: fraction of the model's compute crossbars to remove, in [0, 1).
        schedule: lengths of the phases; None = the defaults.
        settings: the solver and its steps; None = `lgd_rpp` on the reconstruction objective.
        budget: how the ratio is divided among the layers: "uniform", or "per_layer" settings.
        include: dotted-name patterns of the layers that may be pruned; None = all.
        exclude: dotted-name patterns of those that may not; None = the first and the last layer.
        input_shape: (C, H, W) of one input; None = of the module's `example_input_array`.
        root: dotted name of the network inside the LightningModule ("net"); "" = the module itself.
        seed: of all draws.

    Raises:
        ConfigError: an argument is out of range.
        BudgetError: (when fitting starts) the ratio cannot be met.

    Source: see `StepPruner`.
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
            *(crossbar, mapping, grain, ratio, schedule, settings, budget, include, exclude, seed)
        )
        self.find(root, input_shape)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.stop_watching()
