"""Which columns share a crossbar after pruning: the recombination table.

At crossbar grain a surviving block (input group, output group) keeps its crossbar. At column grain
the surviving columns of one input group, from any output group, are put side by side: they see the
same rows, so only the place where each column's sum is added has to be known. That place is the
table `block_outputs`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GRAINS = ("crossbar", "column")


@dataclass(frozen=True, eq=False)
class Packing:
    """The N physical blocks of one layer, sorted by input group, then by output.

    Each stands for slices * row_splits crossbars.
    """

    block_input: Tensor
    """(N,) int64: global input group, conv_group * P + p, whose FMs drive the rows."""
    block_outputs: Tensor
    """(N, Kout) int64: the output FM that each column adds into; -1 = the column is free."""
    block_group: Tensor | None
    """(N,) int64: global output group, conv_group * Q + q; None after recombination."""

    def __len__(self) -> int:
        return self.block_input.numel()


def pack(
    mask: Tensor | None,
    grain: str,
    input_groups: int,
    output_order: Tensor,
    kout: int,
) -> Packing:
    """Places the surviving blocks or columns of one layer on physical blocks.

    Args:
        mask: bool, True = kept. Crossbar grain (G * Q, P), column grain (Cout, P); None = dense.
        grain: "crossbar" or "column".
        input_groups: P of one conv group.
        output_order: (G, Cout / G) int64, the output FM (numbered over all conv groups) at each
            place; output group q holds places q * kout to (q + 1) * kout - 1.
        kout: output FMs per crossbar.

    Returns:
        The packing. Columns of one input group fill its blocks in the order of their places.
    """
    groups = output_order.shape[0]
    if mask is None or grain == "crossbar":
        table = output_table(output_order, kout)
        quantity = table.shape[0] // groups
        if mask is None:
            mask = torch.ones(groups * quantity, input_groups, dtype=torch.bool)
        g, p, q = mask.view(groups, quantity, input_groups).transpose(1, 2).nonzero().unbind(1)
        group = g * quantity + q
        return Packing(g * input_groups + p, table[group], group)

    # Rank of each surviving column among those of its input group: rank // kout is its crossbar
    # there, rank % kout its column.
    kept = mask[output_order].transpose(1, 2)
    g, p, place = kept.nonzero().unbind(1)
    rank = (kept.cumsum(2) - 1)[g, p, place]
    blocks = _ceil(kept.sum(2), kout).flatten()
    first = blocks.cumsum(0) - blocks
    block = first[g * input_groups + p] + rank // kout
    packed = torch.full((int(blocks.sum()), kout), -1)
    packed[block, rank % kout] = output_order[g, place]
    owner = torch.arange(groups * input_groups).repeat_interleave(blocks)
    return Packing(owner, packed, None)


def count_blocks(mask: Tensor, grain: str, conv_groups: int, kout: int) -> int:
    """Physical blocks that `pack` would list, without listing them.

    Args:
        mask: bool, (G * Q, P) at crossbar grain, (Cout, P) at column grain.
        grain: "crossbar" or "column".
        conv_groups: G.
        kout: output FMs per crossbar.

    Returns:
        Surviving blocks (crossbar grain), or the sum over input groups of
        ceil(surviving columns / kout) (column grain).
    """
    if grain == "crossbar":
        return int(mask.sum())
    columns = mask.view(conv_groups, -1, mask.shape[1]).sum(1)
    return int(_ceil(columns, kout).sum())


def output_table(output_order: Tensor, kout: int) -> Tensor:
    """Cuts the ordered outputs into groups: (G * Q, kout) int64, padded with -1."""
    groups, outputs = output_order.shape
    quantity = -(-outputs // kout)
    padded = output_order.new_full((groups, quantity * kout), -1)
    padded[:, :outputs] = output_order
    return padded.view(groups * quantity, kout)


def _ceil(a: Tensor, b: int) -> Tensor:
    return -(-a // b)
