"""One choice over all layers at once: the groups of highest score that the crossbars can hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from crosspruner.hardware.plan import Plan
from crosspruner.pruning.budget import check_ratio, settle, units_of
from crosspruner.solver.falcon import choose_by_price
from crosspruner.sparsity import GroupLayout, project


def block_values(scores: Tensor, layout: GroupLayout) -> Tensor:
    """What each block of a layer is worth, best first.

    Args:
        scores: (U, P) >= 0.
        layout: the groups. At column grain a block is the next Kout best columns of an input group
            and a lane (outputs of one lane never share a crossbar with those of another).

    Returns:
        (blocks,) sums of scores, falling.
    """
    if layout.grain == "crossbar":
        return scores.flatten().sort(descending=True).values
    columns = scores.view(layout.lanes, -1, layout.input_groups)
    padded = scores.new_zeros(layout.lanes, layout.lane_groups * layout.kout, layout.input_groups)
    padded[:, : columns.shape[1]] = columns.sort(dim=1, descending=True).values
    chunks = padded.unflatten(1, (layout.lane_groups, layout.kout)).sum(2)
    return chunks.flatten().sort(descending=True).values


def choose_blocks(
    scores: Mapping[str, Tensor], plan: Plan, layouts: Mapping[str, GroupLayout], ratio: float
) -> dict[str, int]:
    """Blocks to keep in each layer so that they are worth most for the crossbars they take.

    Args:
        scores: layer name -> (U, P) >= 0, in one unit for all layers.
        plan: the dense plan.
        layouts: the prunable layers.
        ratio: fraction of the plan's compute crossbars to remove, in [0, 1).

    Returns, Raises: as `budget.uniform_budget`.
    """
    target = check_ratio(plan, layouts, ratio)
    if not target:
        return {name: layout.blocks for name, layout in layouts.items()}
    unit, blocks, most = units_of(layouts)
    values = [block_values(scores[n].double().cpu(), layout) for n, layout in layouts.items()]
    # What every output needs is kept whatever it is worth; the rest is bought.
    free = torch.cat([v[int(b - m) :] for v, b, m in zip(values, blocks, most, strict=True)])
    layer = torch.arange(len(unit)).repeat_interleave(most)
    bought = choose_by_price(free, unit[layer], float((unit * most).sum()) - target)
    kept = torch.bincount(layer[bought], minlength=len(unit))
    removed = settle((most - kept).double(), unit, most, target)
    return dict(zip(layouts, (blocks - removed).tolist(), strict=True))


def choose_masks(
    scores: Mapping[str, Tensor], plan: Plan, layouts: Mapping[str, GroupLayout], ratio: float
) -> dict[str, Tensor]:
    """`choose_blocks`, then in each layer the groups of highest score that they hold.

    Returns:
        Layer name -> (U, P) bool, on the CPU, at the exact budget.
    """
    blocks = choose_blocks(scores, plan, layouts, ratio)
    return {n: project(scores[n].cpu(), blocks[n], layout) for n, layout in layouts.items()}
