"""How the crossbars to remove are divided among the layers: what `budget=` refers to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crosspruner.errors import ConfigError
from crosspruner.hardware.plan import Plan
from crosspruner.pruning.budget import BUDGETS, uniform_budget
from crosspruner.pruning.layer_ratios import per_layer_budget, ratio_of
from crosspruner.sparsity import GroupLayout


@dataclass(frozen=True)
class BudgetSettings:
    """The choice of a budget and what it needs.

    Args:
        name: one of BUDGETS: "uniform" takes one share of every layer; "global" removes where it
            costs least per crossbar; "sensitivity" goes in each layer as far as the accuracy
            allows, `ratio` at most; "per_layer" takes `layer_ratios`. "global" and "sensitivity"
            work layer by layer only.
        layer_ratios: layer or pattern -> fraction of its crossbars to remove (per_layer alone).
        max_drop: accuracy, 0 to 1, that the network may lose on held-out images (sensitivity).
        max_layer_ratio: fraction of a layer's own crossbars at which it stops, in (0, 1]
            (sensitivity).
        min_crossbars: Tc, the crossbars that a layer keeps at least, >= 0 (sensitivity).
        step: fraction of a layer's crossbars tried at a time, in (0, 1] (sensitivity).

    Raises:
        ConfigError: a value is out of its range.
    """

    name: str = "uniform"
    layer_ratios: Any = None
    max_drop: float = 0.02
    max_layer_ratio: float = 0.9
    min_crossbars: int = 0
    step: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in BUDGETS:
            raise ConfigError(f"budget={self.name!r} is unknown: use one of {', '.join(BUDGETS)}")
        given = isinstance(self.layer_ratios, Mapping) and len(self.layer_ratios) > 0
        if (self.name == "per_layer") != given:
            raise ConfigError(
                f"budget={self.name} with budget.layer_ratios={self.layer_ratios}: per_layer needs "
                "ratios, and no other budget takes them; type budget=per_layer "
                "'budget.layer_ratios={features.*:0.6}'"
            )
        if not (0 <= self.max_drop <= 1 and 0 < self.max_layer_ratio <= 1 and 0 < self.step <= 1):
            raise ConfigError(
                f"budget: max_drop={self.max_drop} must lie in [0, 1], max_layer_ratio="
                f"{self.max_layer_ratio} and step={self.step} in (0, 1]"
            )
        if self.min_crossbars < 0:
            raise ConfigError(f"budget.min_crossbars={self.min_crossbars}: give 0 or more")

    @classmethod
    def of(cls, budget: "BudgetSettings | str") -> "BudgetSettings":
        """The settings themselves, or those of a name with the defaults."""
        return cls(budget) if isinstance(budget, str) else budget

    def first_blocks(
        self, plan: Plan, layouts: Mapping[str, GroupLayout], ratio: float
    ) -> tuple[dict[str, int], float]:
        """What can be said of the budget before any image is seen.

        Returns:
            Layer name -> blocks to keep, and the fraction of crossbars that this removes or, where
            it is `ratio` that was asked for, that ratio.

        Raises:
            BudgetError, ConfigError: it cannot be met.
        """
        if self.name != "per_layer":
            return uniform_budget(plan, layouts, ratio), ratio
        blocks = per_layer_budget(plan, layouts, self.layer_ratios)
        return blocks, ratio_of(plan, layouts, blocks)
