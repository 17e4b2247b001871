"""The best mask that fits a number of crossbars exactly.

Crossbars come in whole numbers, so the feasible masks form a staircase. At crossbar grain a step
is one block. At column grain the surviving columns of an input group, from any output group, share
crossbars Kout at a time, so a step is one crossbar of packed columns, and a mask that wastes no
slot keeps a multiple of Kout columns of each input group (or all of them). Sorting each input
group's columns and cutting them into chunks of Kout makes the chunk sums fall, so taking the
highest chunks is the exact maximum of the kept score for the crossbars paid.

Source: column recombination along the output dimension, Liang et al. 2018; the projection onto its
staircase is ours.
"""

import torch
from torch import Tensor

from crosspruner.errors import BudgetError
from crosspruner.sparsity.groups import GroupLayout


def project(scores: Tensor, blocks: int, layout: GroupLayout) -> Tensor:
    """Keep the groups of highest score that `blocks` crossbar blocks can hold.

    Every output keeps at least one input group. At crossbar grain the kept score is the exact
    maximum. At column grain it is the exact maximum whenever that maximum leaves no output without
    input; else the columns are exchanged one for one until every output has its input. (Below zero
    scores count there by how far they are above the lowest: a paid column is never left empty.)

    Args:
        scores: (U, P) finite, higher = more worth keeping.
        blocks: blocks to keep, layout.fewest_blocks..layout.blocks; `layout.crossbars_per_block`
            physical crossbars each.
        layout: the group structure.

    Returns:
        (U, P) bool with layout.blocks_of(mask) == blocks.

    Raises:
        BudgetError: `blocks` is out of range.
    """
    if not layout.fewest_blocks <= blocks <= layout.blocks:
        raise BudgetError(
            f"layer {layout.name}: {blocks} blocks asked for, "
            f"{layout.fewest_blocks} to {layout.blocks} can be kept"
        )
    if layout.grain == "crossbar":
        return _project_blocks(scores, blocks)
    mask = _project_columns(scores.reshape(layout.lanes, -1, scores.shape[1]), blocks, layout)
    return mask.reshape(scores.shape)


def _project_blocks(scores: Tensor, blocks: int) -> Tensor:
    best = torch.zeros_like(scores, dtype=torch.bool)
    best.scatter_(1, scores.argmax(dim=1, keepdim=True), True)
    return _top(scores, best, blocks)


def _top(scores: Tensor, forced: Tensor, count: int) -> Tensor:
    """The `count` highest entries, the forced ones before all others; ties to the lower index."""
    flat, first = scores.flatten(), forced.flatten()
    by_score = torch.argsort(flat, descending=True, stable=True)
    order = by_score[torch.argsort(first[by_score].int(), descending=True, stable=True)]
    mask = torch.zeros_like(first)
    mask[order[:count]] = True
    return mask.view_as(forced)


def _project_columns(scores: Tensor, blocks: int, layout: GroupLayout) -> Tensor:
    """scores (G, O, P): outputs and input groups of each of G lanes."""
    # With no score below zero, a last chunk of fewer than Kout columns cannot outrank a full one,
    # so a higher chunk of an input group is always taken before a lower one. Scores of zero and
    # more stay as they are: a shift would take more from a full chunk than from a short one.
    scores = scores - scores.amin().clamp(max=0)
    mask = _fill(scores, _take_chunks(scores, blocks, layout), layout.kout)
    if bool(mask.any(dim=2).all()):
        return mask
    # Second try: the best column of each output goes to the front of its input group's queue.
    best = torch.zeros_like(mask).scatter_(2, scores.argmax(dim=2, keepdim=True), True)
    lifted = torch.where(best, scores + scores.amax() + 1, scores)
    needed = -(-best.sum(dim=1) // layout.kout)
    if int(needed.sum()) <= blocks:
        return _fill(lifted, _take_chunks(scores, blocks, layout, needed), layout.kout)
    return _cover(scores, mask)


def _take_chunks(
    scores: Tensor, blocks: int, layout: GroupLayout, needed: Tensor | None = None
) -> Tensor:
    """(G, P) chunks to keep of each input group, `blocks` in total, at least `needed` (G, P)."""
    groups, outputs, inputs = scores.shape
    chunks = layout.lane_groups
    ranked = scores.new_zeros(groups, chunks * layout.kout, inputs)
    ranked[:, :outputs] = scores.sort(dim=1, descending=True).values
    sums = ranked.view(groups, chunks, layout.kout, inputs).sum(dim=2)
    forced = torch.zeros_like(sums, dtype=torch.bool)
    if needed is not None:
        place = torch.arange(chunks, device=scores.device).view(1, -1, 1)
        forced = place < needed.unsqueeze(1)
    elif groups > 1:
        # Each lane holds its own outputs, so each needs its own chunks.
        leading = sums.flatten(1).topk(chunks, dim=1).indices
        forced = forced.flatten(1).scatter_(1, leading, True).view_as(sums)
    return _top(sums, forced, blocks).sum(dim=1)


def _fill(scores: Tensor, chunks: Tensor, kout: int) -> Tensor:
    """Keep the chunks * kout best columns of each input group."""
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < chunks.unsqueeze(1) * kout


def _cover(scores: Tensor, mask: Tensor) -> Tensor:
    """Give every output an input group without changing any input group's number of columns.

    Each convolution group keeps at least as many columns as it has outputs, so while one output has
    none, another has two: its cheapest spare column makes room. Outputs are served one at a time
    (each exchange changes what is spare), the convolution groups side by side.
    """
    mask = mask.clone()
    lane = torch.arange(mask.shape[0], device=mask.device)
    while True:
        inputs = mask.sum(dim=2)
        bare, output = (inputs == 0).max(dim=1)
        if not bool(bare.any()):
            return mask
        spare = mask & (inputs > 1).unsqueeze(2)
        price, victim = scores.masked_fill(~spare, torch.inf).min(dim=1)
        gain = scores[lane, output] - price
        chosen = gain.argmax(dim=1)
        served, target = lane[bare], chosen[bare]
        mask[served, victim[served, target], target] = False
        mask[served, output[bare], target] = True
