"""How many crossbars each layer gives: a budget met on the removable units exactly.

The ratio is a fraction of the *model's* compute crossbars. Layers that may not be pruned count all
the same, so the prunable ones give a little more than the ratio; all of them the same share, as far
as each can.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from crosspruner.errors import BudgetError, ConfigError
from crosspruner.hardware.plan import Plan
from crosspruner.solver.exact_sum import choose_counts
from crosspruner.sparsity import GroupLayout

BUDGETS = ("uniform", "global", "sensitivity", "per_layer")


def prunable_layers(plan: Plan, grain: str) -> dict[str, GroupLayout]:
    """The layers that may be pruned, with their groups.

    Args:
        plan: the dense plan; its `include` and `exclude` have marked the layers.
        grain: "crossbar" or "column".

    Returns:
        Layer name -> groups, in the order of the plan. Layers of one input group (P = 1) are never
        among them: every output keeps at least one.
    """
    layouts = {layer.name: GroupLayout.of(layer, grain) for layer in plan.layers if layer.prunable}
    return {name: layout for name, layout in layouts.items() if layout.input_groups > 1}


def uniform_budget(plan: Plan, layouts: Mapping[str, GroupLayout], ratio: float) -> dict[str, int]:
    """Blocks to keep in each prunable layer so that the model gives `ratio` of its crossbars.

    Args:
        plan: the dense plan.
        layouts: the prunable layers.
        ratio: fraction of the plan's compute crossbars to remove, in [0, 1).

    Returns:
        Layer name -> blocks kept. The crossbars removed come as near to the target as any whole
        blocks of these layers do (a block with its slices is a unit): within half of the units'
        greatest common divisor wherever they can be combined so.

    Raises:
        BudgetError: ratio out of range, nothing prunable, or more asked for than the layers can
            give; the message names the largest feasible ratio and the layers.
    """
    if not layouts or ratio == 0:
        check_ratio(plan, layouts, ratio)
        return {name: layout.blocks for name, layout in layouts.items()}
    target, (unit, blocks, most) = check_ratio(plan, layouts, ratio), units_of(layouts)
    removed = settle(_common_share(unit, blocks, most, target), unit, most, target)
    return dict(zip(layouts, (blocks - removed).tolist(), strict=True))


def global_budget(
    plan: Plan, layouts: Mapping[str, GroupLayout], ratio: float, costs: Mapping[str, Tensor]
) -> dict[str, int]:
    """Blocks to keep in each prunable layer so that the removed crossbars cost least in total.

    In the dual of the allocation every layer removes blocks as long as they cost less per crossbar
    than one multiplier, the same for all layers, set so that the removals reach the target. Blocks
    are whole: of all divisions that come nearest to the target, this is one of least cost.

    Args:
        plan, layouts, ratio: as for `uniform_budget`.
        costs: layer name -> (blocks - fewest_blocks,) rise of the loss with each further block
            removed, never falling; in one unit for all layers.

    Returns, Raises: as for `uniform_budget`.

    Source: FALCON (Meng et al., AISTATS 2024) relaxes its budget in the same way; crossbars as the
    price, and the exact choice in whole blocks (`solver.exact_sum`), are ours.
    """
    if not layouts or ratio == 0:
        return uniform_budget(plan, layouts, ratio)
    target, (unit, blocks, _) = check_ratio(plan, layouts, ratio), units_of(layouts)
    removed = choose_counts([costs[name] for name in layouts], unit, target)
    return dict(zip(layouts, (blocks - removed).tolist(), strict=True))


def units_of(layouts: Mapping[str, GroupLayout]) -> tuple[Tensor, Tensor, Tensor]:
    """Per layer (L,) int64: crossbars of a block, blocks, and blocks that may go."""
    unit = torch.tensor([layout.crossbars_per_block for layout in layouts.values()])
    blocks = torch.tensor([layout.blocks for layout in layouts.values()])
    return unit, blocks, blocks - torch.tensor([lay.fewest_blocks for lay in layouts.values()])


def check_ratio(plan: Plan, layouts: Mapping[str, GroupLayout], ratio: float) -> float:
    """Crossbars to remove.

    Raises:
        BudgetError: the layers cannot give that many.
        ConfigError: the ratio is no number.
    """
    check_number(ratio)
    if not 0 <= ratio < 1:
        raise BudgetError(f"ratio={ratio} is out of range: give a fraction from 0 to below 1")
    total = plan.compute_crossbars
    if ratio > 0 and not any(layer.prunable for layer in plan.layers):
        raise BudgetError(
            f"ratio={ratio}: include without exclude leaves no layer that may be pruned (exclude "
            "is the first and the last layer where it is not given; exclude=[] is none); change "
            f"one of them. The layers are {_some([layer.name for layer in plan.layers])}"
        )
    if ratio > 0 and not layouts:
        raise BudgetError(
            f"ratio={ratio}: no layer of {_some([layer.name for layer in plan.layers])} can be "
            f"pruned. {_elsewhere(plan, layouts)}"
        )
    if ratio == 0:
        return 0.0
    unit, _, most = units_of(layouts)
    target, limit = ratio * total, int((most * unit).sum())
    if target > limit + 0.5 * int(unit.min()):
        raise BudgetError(
            f"ratio={ratio} asks for {target:.0f} of {total} compute crossbars; the prunable "
            f"layers ({_some(list(layouts))}) can give {limit}, for every output keeps one input "
            f"group: the largest feasible ratio is {limit / total:.4f}. "
            f"{_elsewhere(plan, layouts)}"
        )
    return target


def check_number(ratio: Any) -> None:
    """Raise ConfigError unless the ratio is a number, of whatever size."""
    if isinstance(ratio, bool) or not isinstance(ratio, Real):
        raise ConfigError(f"ratio={ratio!r} is no number: give a fraction from 0 to below 1")


def _some(names: list[str], shown: int = 4) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _elsewhere(plan: Plan, layouts: Mapping[str, GroupLayout]) -> str:
    """Which crossbars no pruning can free, and what would change that."""
    left = [layer for layer in plan.layers if layer.name not in layouts]
    single = [layer for layer in left if layer.prunable]
    barred = [layer for layer in left if not layer.prunable]
    depthwise = [layer for layer in single if layer.conv_groups == layer.geometry.in_channels > 1]
    parts, remedies = [], []
    if single:
        kind = f", {len(depthwise)} of them depthwise" if depthwise else ""
        held = sum(layer.compute_crossbars for layer in single)
        parts.append(f"those with one input group ({len(single)}{kind}) hold {held} crossbars")
    if barred:
        held = sum(layer.compute_crossbars for layer in barred)
        parts.append(f"those that may not be pruned ({len(barred)}) hold {held} crossbars")
    if any(layer.bundle == 1 for layer in depthwise):  # each channel on a crossbar of its own
        remedies.append("mapping.grouped=block_diagonal, where channels share crossbars")
    if layouts or single:
        remedies.append("smaller crossbars or a smaller kin (mapping.kin)")
    if barred:
        remedies.append("another include or exclude")
    where = f"Of the other layers, {', '.join(parts)}: try " if parts else "Try "
    return where + ", or ".join(remedies)


def _common_share(unit: Tensor, blocks: Tensor, most: Tensor, target: float) -> Tensor:
    """(L,) blocks, with fractions, of one share of every layer, as far as each can give it."""
    low, high = 0.0, 1.0
    for _ in range(60):  # bisection on the share: the sum of capped shares grows with it
        share = (low + high) / 2
        given = torch.minimum(share * blocks.double(), most.double())
        low, high = (share, high) if float((given * unit).sum()) < target else (low, share)
    return torch.minimum(high * blocks.double(), most.double())


def settle(wanted: Tensor, unit: Tensor, most: Tensor, target: float) -> Tensor:
    """Whole blocks to remove per layer, as near to the target as any whole blocks come.

    First the wanted numbers are rounded: down, but up where the layer of a coarse unit has room for
    one block more; the layers of the finest unit make up for the rest. If another division comes
    nearer to the target, the one next to what is wanted is taken instead: of least summed
    unit * (removed - wanted)^2 / most.

    Args:
        wanted: (L,) blocks to remove, with fractions.
        unit: (L,) crossbars of a block.
        most: (L,) blocks that may go.
        target: crossbars to remove.

    Returns:
        (L,) int64, 0..most. No other blocks add up nearer to the target.
    """
    removed = _rounded(wanted, unit, most, target)
    missed = abs(target - float((removed * unit).sum()))
    if missed <= 0.5 * math.gcd(*unit.tolist()):
        return removed
    distance = [
        (2 * (torch.arange(m).double() - w) + 1) * u / max(m, 1)
        for w, u, m in zip(wanted.double().tolist(), unit.tolist(), most.tolist(), strict=True)
    ]  # each further block adds this much to the sum of squares
    nearest = choose_counts(distance, unit, target)
    nearer = abs(target - float((nearest * unit).sum())) < missed - 1e-6
    return nearest if nearer else removed


def _rounded(wanted: Tensor, unit: Tensor, most: Tensor, target: float) -> Tensor:
    """(L,) the wanted numbers, rounded so as to meet the target where that is easy."""
    removed = wanted.floor().long()
    # What the floors left over goes to the layers with the coarsest units first, so that the
    # finest ones settle the rest.
    for layer in torch.argsort(unit, descending=True, stable=True).tolist():
        left = target - float((removed * unit).sum())
        extra = round(left / int(unit[layer]))
        coarse = bool((unit < unit[layer]).any())
        if coarse:  # at most the one block that the floor took
            extra = min(max(extra, 0), int(wanted[layer].ceil() - removed[layer]))
        removed[layer] += min(max(extra, -int(removed[layer])), int(most[layer] - removed[layer]))
    return removed
