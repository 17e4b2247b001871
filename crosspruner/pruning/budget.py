"""How many crossbars each layer gives: the uniform budget, met on the removable units exactly.

The ratio is a fraction of the *model's* compute crossbars. Layers that may not be pruned count all
the same, so the prunable ones give a little more than the ratio; all of them the same share, as far
as each can.
"""

from collections.abc import Mapping

import torch

from crosspruner.errors import BudgetError
from crosspruner.hardware.plan import Plan
from crosspruner.sparsity import GroupLayout

BUDGETS = ("uniform",)


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
        Layer name -> blocks kept. The crossbars removed are within half of the smallest removable
        unit (one block with its slices) of the target, or within the nearest combination of units.

    Raises:
        BudgetError: ratio out of range, nothing prunable, or more asked for than the layers can
            give; the message names the largest feasible ratio and the layers.
    """
    if not 0 <= ratio < 1:
        raise BudgetError(f"ratio={ratio} is out of range: give a fraction from 0 to below 1")
    total = plan.compute_crossbars
    if ratio == 0:
        return {name: layout.blocks for name, layout in layouts.items()}
    if not layouts:
        raise BudgetError(
            f"ratio={ratio}: no layer of {', '.join(layer.name for layer in plan.layers)} can be "
            "pruned on this crossbar (each has one input group, or is excluded); use smaller "
            "crossbars, a smaller mapping.kin, or change exclude"
        )
    unit = torch.tensor([layout.crossbars_per_block for layout in layouts.values()])
    blocks = torch.tensor([layout.blocks for layout in layouts.values()])
    most = blocks - torch.tensor([layout.fewest_blocks for layout in layouts.values()])
    target = ratio * total
    limit = int((most * unit).sum())
    if target > limit + 0.5 * int(unit.min()):
        raise BudgetError(
            f"ratio={ratio} asks for {target:.0f} of {total} compute crossbars; the prunable "
            f"layers ({', '.join(layouts)}) can give {limit}, for every output keeps one input "
            f"group: the largest feasible ratio is {limit / total:.4f}"
        )
    removed = _spread(unit, blocks, most, target)
    return dict(zip(layouts, (blocks - removed).tolist(), strict=True))


def _spread(
    unit: torch.Tensor, blocks: torch.Tensor, most: torch.Tensor, target: float
) -> torch.Tensor:
    """Blocks to remove per layer: one common share, capped, then rounded to the target."""
    low, high = 0.0, 1.0
    for _ in range(60):  # bisection on the share: the sum of capped shares grows with it
        share = (low + high) / 2
        given = torch.minimum(share * blocks.double(), most.double())
        low, high = (share, high) if float((given * unit).sum()) < target else (low, share)
    wanted = torch.minimum(high * blocks.double(), most.double())
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
