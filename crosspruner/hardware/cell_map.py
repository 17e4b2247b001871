"""Where a layer's weights are: crossbar, row and column of one copy of each.

The semi-folded and the unfolded mapping hold a weight in many cells, one for each output of the
window and each slice; folded holds it once. Where one copy has to stand for all, it is the first
one, by slice and then by output, of those that have the most of the kernel (a copy at the border of
the FM lacks what would read padding).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crosspruner.hardware.axis import Axis, axes
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.fm_order import local_inputs
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.mapping import ceil_div


def cell_number(crossbar: Crossbar, number: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Number, within the layer, of the cells that hold a weight.

    Args:
        crossbar: the array.
        number: of the crossbar within the layer; the three broadcast against each other.
        row: of the crossbar.
        column: in weights, 0 to weight_columns - 1.

    Returns:
        (cells_per_weight, *broadcast) int64.
    """
    first = (number * crossbar.rows + row) * crossbar.cols + column * crossbar.cells_per_weight
    each = torch.arange(crossbar.cells_per_weight, device=first.device)
    return first + each.view(-1, *[1] * first.dim())


@dataclass(frozen=True, eq=False)
class CellMap:
    """W weights of a layer, each on one crossbar, row and column; pruned ones are nowhere."""

    weight: Tensor
    """(W,) int64: place in the flattened weight."""
    number: Tensor
    """(W,) int64: crossbar within the layer."""
    row: Tensor
    """(W,) int64."""
    column: Tensor
    """(W,) int64, in weights."""
    crossbar: Crossbar

    @cached_property
    def column_of(self) -> Tensor:
        """(W,) int64: which of the columns in use each weight is in, numbered from 0."""
        return (self.number * self.crossbar.cols + self.column).unique(return_inverse=True)[1]


def map_cells(layer: LayerPlan) -> CellMap:
    """Finds one copy of every weight that the plan holds.

    Args:
        layer: the layer's plan, dense or pruned.

    Returns:
        The map. Weights that only ever meet padding have no cell.
    """
    geometry, packing, limit = layer.geometry, layer.packing, layer.crossbar.rows
    down, across = axes(geometry, layer.tiling)
    part, slice_v, row_v, output_v = _first_copies(down, geometry.kernel[0])
    _, slice_h, row_h, output_h = _first_copies(across, geometry.kernel[1])
    _, tall, _, tall_rows = down.reads.shape
    _, broad, _, broad_rows = across.reads.shape
    outputs = down.taps.shape[3] * across.taps.shape[3]

    fms = layer.input_table[packing.block_input][:, :, None, None, None]
    outs = packing.block_outputs[:, None, None, None, :]
    block = torch.arange(len(packing))[:, None, None, None, None]
    local = local_inputs(geometry, fms, outs)  # off the diagonal of a bundle: no weight
    fm = torch.arange(fms.shape[1])[:, None, None, None]
    tap_v = torch.arange(geometry.kernel[0])[:, None, None]
    tap_h = torch.arange(geometry.kernel[1])[:, None]
    place = torch.arange(outs.shape[-1])
    there = (local < geometry.group_inputs) & (part >= 0)[:, None, None] & (slice_h >= 0)[:, None]

    # As execute_layer lays them out: rows by FM, then down, then across; columns by output FM, then
    # by output of the window; crossbars by kernel row, slice, block, piece of a long FM.
    row = (fm * tall_rows + row_v[tap_v]) * broad_rows + row_h[tap_h]
    splits = ceil_div(fms.shape[1] * tall_rows * broad_rows, limit)
    copy = part[tap_v] * tall * broad + slice_v[tap_v] * broad + slice_h[tap_h]
    number = (copy * len(packing) + block) * splits + row // limit
    column = place * outputs + output_v[tap_v] * across.taps.shape[3] + output_h[tap_h]
    flat = (outs * geometry.group_inputs + local) * geometry.kernel[0]
    flat = (flat + tap_v) * geometry.kernel[1] + tap_h
    flat, number, row, column = (
        t.expand(there.shape)[there] for t in (flat, number, row % limit, column)
    )
    return CellMap(flat, number, row, column, layer.crossbar)


def _first_copies(axis: Axis, kernel: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(part, slice, row, output), each (kernel,), of one copy of each tap; -1 = there is none."""
    taps = axis.taps
    held = taps < kernel
    complete = held.sum((0, 2))  # (slices, outputs): taps that this copy has
    order = (-complete.flatten()).argsort(stable=True).argsort().view(complete.shape)
    part, copy, row, output = held.nonzero().unbind(1)
    tap = taps[part, copy, row, output]
    best = (tap * order.numel() + order[copy, output]).argsort(stable=True)
    first = torch.ones_like(tap, dtype=torch.bool)
    first[1:] = tap[best][1:] != tap[best][:-1]
    found = best[first]
    table = torch.full((4, kernel), -1)
    table[:, tap[found]] = torch.stack([part, copy, row, output])[:, found]
    return table[0], table[1], table[2], table[3]
