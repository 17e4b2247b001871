"""Which columns share a crossbar after pruning: the recombination table.

At crossbar grain a surviving block (input group, output group) keeps its crossbar. At column grain
the surviving columns of one input group, from any output group, are put side by side: they see the
same rows, so only the place where each column's sum is added has to be known. That place is the
table `block_outputs`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosspruner.errors import ConfigError, PlanError

GRAINS = ("crossbar", "column")


@dataclass(frozen=True, eq=False)
class Packing:
    """The N physical blocks of one layer, sorted by input group, then by output.

    Each stands for slices * row_splits crossbars.
    """

    block_input: Tensor
    """(N,) int64: global input group, conv_group (or bundle) * P + p, whose FMs drive the rows."""
    block_outputs: Tensor
    """(N, bundle * Kout) int64: the output FM that each column adds into; -1 = it is free."""
    block_group: Tensor | None
    """(N,) int64: global output group, conv_group (or bundle) * Q + q; None if recombined."""

    def __len__(self) -> int:
        return self.block_input.numel()


def pack(
    mask: Tensor | None,
    grain: str,
    input_groups: int,
    output_order: Tensor,
    kout: int,
    bundle: int = 1,
    sections: int = 1,
) -> Packing:
    """Places the surviving blocks or columns of one layer on physical blocks.

    Args:
        mask: bool, True = kept. Crossbar grain (G / bundle * Q, P), column grain (Cout, P); None =
            dense.
        grain: "crossbar" or "column".
        input_groups: P of one conv group.
        output_order: (G, Cout / G) int64, the output FM (numbered over all conv groups) at each
            place; output group q holds places q * kout to (q + 1) * kout - 1.
        kout: output FMs per crossbar, of one conv group.
        bundle: conv groups that share a crossbar block-diagonally.
        sections: runs of outputs within a conv group that never share a crossbar.

    Returns:
        The packing. Columns of one input group fill its blocks in the order of their places; those
        of a bundle share blocks, whichever conv group they are of.
    """
    groups = output_order.shape[0] // bundle
    if mask is None or grain == "crossbar":
        table = output_table(output_order, kout, bundle, sections)
        quantity = table.shape[0] // groups
        if mask is None:
            mask = torch.ones(groups * quantity, input_groups, dtype=torch.bool)
        g, p, q = mask.view(groups, quantity, input_groups).transpose(1, 2).nonzero().unbind(1)
        group = g * quantity + q
        return Packing(g * input_groups + p, table[group], group)

    # A lane is the outputs that may share crossbars. Rank of each surviving column among those of
    # its lane and input group: rank // room is its crossbar there, rank % room its column.
    lanes, room = output_order.reshape(groups * sections, -1), kout * bundle
    kept = mask[lanes].transpose(1, 2)
    g, p, place = kept.nonzero().unbind(1)
    rank = (kept.cumsum(2) - 1)[g, p, place]
    blocks = _ceil(kept.sum(2), room).flatten()
    first = blocks.cumsum(0) - blocks
    block = first[g * input_groups + p] + rank // room
    packed = torch.full((int(blocks.sum()), room), -1)
    packed[block, rank % room] = lanes[g, place]
    lane_and_group = torch.arange(len(lanes) * input_groups).repeat_interleave(blocks)
    lane, p = lane_and_group // input_groups, lane_and_group % input_groups
    owner = lane // sections * input_groups + p
    by_owner = owner.argsort(stable=True)
    return Packing(owner[by_owner], packed[by_owner], None)


def count_blocks(mask: Tensor, grain: str, lanes: int, kout: int) -> int:
    """Physical blocks that `pack` would list, without listing them.

    Args:
        mask: bool, (G / bundle * Q, P) at crossbar grain, (Cout, P) at column grain.
        grain: "crossbar" or "column".
        lanes: runs of outputs that may share crossbars, all of one length: G / bundle * sections.
        kout: output FMs per crossbar, all conv groups of a bundle together.

    Returns:
        Surviving blocks (crossbar grain), or the sum over input groups of
        ceil(surviving columns / kout) (column grain).
    """
    if grain == "crossbar":
        return int(mask.sum())
    columns = mask.view(lanes, -1, mask.shape[1]).sum(1)
    return int(_ceil(columns, kout).sum())


def output_table(output_order: Tensor, kout: int, bundle: int = 1, sections: int = 1) -> Tensor:
    """Cuts ordered FMs into groups: (G / bundle * Q, bundle * kout) int64, padded with -1.

    Args:
        output_order: (G, FMs of a conv group) int64.
        kout: FMs of one conv group per crossbar.
        bundle: conv groups that share a crossbar: their q-th groups stand side by side.
        sections: equal runs of FMs within a conv group, each cut for itself.
    """
    groups, outputs = output_order.shape
    quantity = -(-outputs // sections // kout)
    padded = output_order.new_full((groups, sections, quantity * kout), -1)
    padded[..., : outputs // sections] = output_order.reshape(groups, sections, -1)
    side_by_side = padded.view(groups // bundle, bundle, sections * quantity, kout)
    return side_by_side.transpose(1, 2).reshape(-1, bundle * kout)


def checked_grain(grain: str) -> str:
    """The grain, which must be one of GRAINS.

    Raises:
        ConfigError: it is none.
    """
    if grain not in GRAINS:
        raise ConfigError(f"grain={grain}: choose one of {', '.join(GRAINS)}.")
    return grain


def checked_mask(name: str, mask: Tensor, shape: tuple[int, int], grain: str) -> Tensor:
    """A copy of a layer's mask as bool, which must have the shape that the layer has at its grain.

    Raises:
        PlanError: it has another shape, or holds more than 0 and 1.
    """
    mask = mask.detach().cpu()
    if tuple(mask.shape) != shape:
        raise PlanError(
            f"{name}: the mask has shape {tuple(mask.shape)}; at grain={grain} it must be {shape}."
        )
    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise PlanError(f"{name}: a mask holds True and False, or 0 and 1.")
        mask = mask.bool()
    return mask.clone()


def _ceil(a: Tensor, b: int) -> Tensor:
    return -(-a // b)
