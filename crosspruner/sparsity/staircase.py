"""What a layer costs as a function of how many groups it keeps: a staircase, and its edges."""

import torch
from torch import Tensor

from crosspruner.sparsity.groups import GroupLayout


def profile(scores: Tensor, layout: GroupLayout) -> tuple[Tensor, Tensor]:
    """Blocks that the n groups of highest score take, for every n.

    The best group of each output comes before all others, so that no output is left without.

    Args:
        scores: (U, P) finite.
        layout: the groups.

    Returns:
        (U * P,) flat positions in the order in which they are kept, and (U * P,) blocks of the
        first 1, 2, ... of them. Each group adds one block or none.
    """
    first = torch.zeros(scores.shape, dtype=torch.bool)
    first.scatter_(1, scores.argmax(dim=1, keepdim=True), True)
    flat = scores.flatten()
    order = torch.argsort(flat, descending=True, stable=True)
    order = order[torch.argsort(first.flatten()[order].int(), descending=True, stable=True)]
    if layout.grain == "crossbar":
        return order, torch.arange(1, len(order) + 1)
    unit, column = order // layout.input_groups, order % layout.input_groups
    lane = unit // (layout.out_channels // layout.lanes) * layout.input_groups + column
    # How many columns of the same lane came before: a multiple of Kout opens a crossbar.
    by_lane = torch.argsort(lane, stable=True)
    counts = torch.bincount(lane, minlength=layout.lanes * layout.input_groups)
    starts = (counts.cumsum(0) - counts)[lane[by_lane]]
    before = torch.empty_like(lane)
    before[by_lane] = torch.arange(len(lane)) - starts
    return order, (before % layout.kout == 0).long().cumsum(0)


def edge_mask(scores: Tensor, blocks: int, layout: GroupLayout) -> Tensor:
    """The most groups in the order of `profile` that so many blocks hold, and what is free.

    Args:
        scores: (U, P) finite.
        blocks: blocks to keep, at least what the first group of each output takes.
        layout: the groups.

    Returns:
        (U, P) bool: the right edge of the step, then every crossbar that is paid for filled with
        the best columns of its input group.
    """
    order, taken = profile(scores, layout)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[taken <= blocks]] = True
    mask = mask.view(scores.shape)
    if layout.grain == "crossbar":
        return mask
    shape = (layout.lanes, -1, layout.input_groups)
    kept = mask.view(shape)
    slots = -(-kept.sum(dim=1) // layout.kout) * layout.kout
    span = scores.amax() - scores.amin() + 1
    lifted = torch.where(kept, scores.view(shape) + span, scores.view(shape))  # kept ones first
    rank = lifted.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < slots.unsqueeze(1)).view(scores.shape)
