"""Which input FMs share crossbars: orders that gather what matters in the same input groups.

Both orders are routing tables of one layer: which FM feeds which rows. No weight of another layer
is touched.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from crosspruner.sparsity.groups import GroupLayout
from crosspruner.sparsity.masking import project

MOST_FMS = 512
"""Fan-in up to which `gather_order` is solved: assigning n FMs takes about n^3 operations."""

# Orders to start from: as they come, by importance, the others drawn.
_STARTS = 8

_ROUNDS = 8


def importance_order(importance: Tensor) -> Tensor:
    """Sort FMs by importance, so that FMs of similar importance share a group.

    Args:
        importance: (G, fan_in) of each convolution group's input FMs.

    Returns:
        (G, fan_in) int64, place -> FM, most important first.

    Source: Liang et al., IEEE Access 2018.
    """
    return importance.argsort(dim=1, descending=True, stable=True)


def gather_order(energy: Tensor, blocks: int, layout: GroupLayout) -> Tensor:
    """Regroup FMs so that a mask of `blocks` blocks keeps as much energy as it can.

    Takes turns: the best mask for the groups at hand, then the best groups for that mask. The
    second step is an assignment problem (each FM to one place) and solved exactly, so the energy
    kept never falls; it ends when it no longer rises, and the best of several starts is taken.

    Args:
        energy: (Cout, fan_in) what each kernel contributes to its output, >= 0.
        blocks: blocks of crossbars that will be kept, layout.fewest_blocks..layout.blocks.
        layout: the layer's groups, with inputs in the order given.

    Returns:
        (G, fan_in) int64, place -> FM. Layers of more than MOST_FMS input FMs per convolution group
        get `importance_order` instead.

    Source: TETRIS (Ji et al., NeurIPS 2018) alternates so, by swaps of indices; the exact
    assignment, and leaving the outputs in place, are ours. At column grain outputs are recombined
    anyway.
    """
    groups, fan_in = layout.conv_groups, layout.fan_in
    by_group = energy.double().cpu().view(groups, -1, fan_in)
    if fan_in > MOST_FMS:
        return importance_order(by_group.sum(1))
    generator = torch.Generator().manual_seed(0)
    best, most = torch.arange(fan_in).expand(groups, fan_in), -1.0
    for start in range(_STARTS):
        order = torch.arange(fan_in).expand(groups, fan_in)
        if start == 1:
            order = importance_order(by_group.sum(1))
        elif start > 1:
            order = torch.rand(groups, fan_in, generator=generator).argsort(1)
        order, kept = _take_turns(by_group, order, blocks, layout)
        if kept > most * (1 + 1e-9):
            best, most = order, kept
    return best


def _take_turns(
    energy: Tensor, order: Tensor, blocks: int, layout: GroupLayout
) -> tuple[Tensor, float]:
    """From one order on: mask, groups, mask, ... while the energy kept rises."""
    best, most = order, -1.0
    for _ in range(_ROUNDS):
        scores = _sums(energy, order, layout)
        mask = project(scores, blocks, layout)
        kept = float((scores * mask).sum())
        if kept <= most * (1 + 1e-9):
            break
        best, most = order, kept
        order = _assign(energy, mask, layout)
    return best, most


def _sums(energy: Tensor, order: Tensor, layout: GroupLayout) -> Tensor:
    """(U, P) energy of each group of weights when FMs stand in that order (G, fan_in)."""
    placed = energy.gather(2, order.unsqueeze(1).expand_as(energy)).flatten(0, 1)
    spare = layout.input_groups * layout.kin - layout.fan_in
    placed = torch.nn.functional.pad(placed, (0, spare)).unflatten(1, (-1, layout.kin)).sum(2)
    sums = placed.new_zeros(layout.shape)
    return sums.index_add_(0, layout.unit_of_output, placed)


def _assign(energy: Tensor, mask: Tensor, layout: GroupLayout) -> Tensor:
    """The order (G, fan_in) that keeps most energy under a mask (U, P)."""
    by_output = mask[layout.unit_of_output].double().view(*energy.shape[:2], -1)  # (G, O, P)
    worth = energy.transpose(1, 2) @ by_output  # (G, fan_in, P): of each FM in each input group
    places = worth.repeat_interleave(layout.kin, dim=2)[:, :, : layout.fan_in]
    orders = []
    for of_group in places:  # scipy solves one at a time; a convolution group each
        fm, place = linear_sum_assignment(of_group.numpy(), maximize=True)
        orders.append(torch.from_numpy(fm)[torch.from_numpy(place).argsort()])
    return torch.stack(orders)
