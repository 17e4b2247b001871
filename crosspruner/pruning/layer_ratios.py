"""A ratio for each layer by name: the budget of `budget=per_layer`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from crosspruner.errors import BudgetError, ConfigError
from crosspruner.hardware.plan import Plan
from crosspruner.hardware.planning import matching
from crosspruner.sparsity import GroupLayout

KEY = "budget.layer_ratios"


def per_layer_budget(
    plan: Plan, layouts: Mapping[str, GroupLayout], layer_ratios: Mapping[str, Any]
) -> dict[str, int]:
    """Blocks to keep in each prunable layer, from a ratio for each.

    Args:
        plan: the dense plan.
        layouts: the prunable layers.
        layer_ratios: name or pattern (`features.*`) -> fraction of that layer's own compute
            crossbars to remove, in [0, 1). Names may be nested, {"features": {"3": 0.5}} being
            {"features.3": 0.5}. A name counts more than a pattern, a later pattern more than an
            earlier one; layers that none of them matches are not pruned.

    Returns:
        Layer name -> blocks kept; each ratio is met to the nearest block.

    Raises:
        ConfigError: a key matches no layer of the plan, or a value is no fraction.
        BudgetError: a layer cannot be pruned, or not by that much: every output keeps one input
            group. The message names the largest feasible ratio.
    """
    names = [layer.name for layer in plan.layers]
    given = dict(_flat(layer_ratios))
    chosen: dict[str, float] = {}
    for key in sorted(given, key=lambda key: key in names):  # stable: patterns first, then names
        for name in matching(key, names, KEY):
            if name not in layouts and key in names and given[key] > 0:
                raise BudgetError(
                    f"{KEY}: {name} cannot be pruned: it is excluded, or has one input group on "
                    f"this crossbar; the prunable layers are {', '.join(layouts)}"
                )
            chosen[name] = given[key]
    kept = {}
    for name, layout in layouts.items():
        ratio, most = chosen.get(name, 0.0), layout.blocks - layout.fewest_blocks
        removed = round(ratio * layout.blocks)
        if removed > most:
            raise BudgetError(
                f"{KEY}: {name}={ratio:g} asks for {removed} of {layout.blocks} blocks; the layer "
                f"can give {most}, for every output keeps one input group: the largest feasible "
                f"ratio is {most / layout.blocks:.4f}"
            )
        kept[name] = layout.blocks - removed
    return kept


def ratio_of(plan: Plan, layouts: Mapping[str, GroupLayout], budget: Mapping[str, int]) -> float:
    """Fraction of the model's compute crossbars that a budget removes."""
    removed = sum(
        (layout.blocks - budget[name]) * layout.crossbars_per_block
        for name, layout in layouts.items()
    )
    return removed / plan.compute_crossbars


def _flat(ratios: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in ratios.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ConfigError(f"{KEY}: {name}={value!r} is no fraction: give 0 to below 1")
        elif not 0 <= value < 1:
            raise ConfigError(f"{KEY}: {name}={value:g} is out of range: give 0 to below 1")
        else:
            yield name, float(value)
