"""One layer computed crossbar by crossbar, from its plan alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from crosspruner.errors import PlanError
from crosspruner.hardware.axis import Axis, axes
from crosspruner.hardware.fm_order import local_inputs
from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.mapping import ceil_div

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(n, phases, rows), (n, rows, columns), (n,) number of each crossbar within the layer
-> (n, phases, columns)."""

# Numbers held at once while crossbars are multiplied: bounds memory, keeps the working set small.
_CHUNK = 1 << 22


def multiply_exactly(driven: Tensor, cells: Tensor, number: Tensor) -> Tensor:
    """The product of crossbars that compute what they hold; a `Product`."""
    return torch.bmm(driven, cells)


def execute_layer(
    layer: LayerPlan,
    x: Tensor,
    weight: Tensor,
    product: Product = multiply_exactly,
    geometry: LayerGeometry | None = None,
) -> Tensor:
    """Computes one layer on its crossbars, without the bias.

    Each crossbar gathers its rows (the FMs of its input group, the inputs under its window),
    multiplies them by the banded kernel copies of its columns, and adds the result to the outputs
    that the plan's table names. Blocks that the plan does not list are never touched, whatever
    the weight holds there.

    Args:
        layer: the layer's plan.
        x: (batch, Cin, height, width), any floating dtype.
        weight: (Cout, Cin / G, kh, kw), of the same dtype.
        product: multiplies a batch of crossbars: (n, phases, rows) by (n, rows, columns). Their
            numbers run from 0 to `compute_crossbars` - 1; the rows and columns that a crossbar does
            not use may be missing at its end.
        geometry: the sizes of this call, for a module that is called at several; None = planned.

    Returns:
        (batch, Cout, height, width).

    Raises:
        PlanError: the input is larger than the plan was made for.
    """
    geometry = layer.geometry if geometry is None else geometry
    down, across = axes(geometry, layer.tiling)
    _check_fits(layer, geometry, down, across)
    packing = layer.packing
    table, owner = layer.input_table.to(x.device), packing.block_input.to(x.device)
    columns = packing.block_outputs.to(x.device)
    kout = columns.shape[1]
    parts, tall, tall_phases, tall_rows = down.reads.shape
    _, broad, broad_phases, broad_rows = across.reads.shape
    window = (down.taps.shape[3], across.taps.shape[3])
    batch, slices, outputs = x.shape[0], tall * broad, window[0] * window[1]
    phases, rows = batch * tall_phases * broad_phases, table.shape[1] * tall_rows * broad_rows
    cost = rows * (phases + kout * outputs) + phases * kout * outputs

    # One more FM, row, column and tap: the zeros that "none" points at.
    inputs = F.pad(x, (0, 1, 0, 1, 0, 1)).flatten(2).permute(1, 2, 0)
    kernel = F.pad(weight, (0, 1, 0, 1, 0, 1, 0, 1)).flatten(2)
    total = x.new_zeros(geometry.out_channels + 1, slices, phases, outputs)
    for part in range(parts):
        for some in _chunks(slices, cost):
            read, tap = (at.to(x.device) for at in _positions(down, across, part, some, geometry))
            seen = inputs[:, read.flatten()].view(len(inputs), *read.shape, batch)
            seen = seen.permute(0, 1, 5, 2, 3, 4).flatten(2, 4)
            for blocks in _chunks(len(packing), cost * len(read)):
                group, out = owner[blocks], columns[blocks]
                fms = table[group]
                # Cells off the diagonal of a bundle of conv groups hold the zero.
                local = local_inputs(layer.geometry, fms[:, :, None], out[:, None, :])
                fms = _or_none(fms, fms, geometry.in_channels)
                out = _or_none(out, out, geometry.out_channels)
                # (block, slice, phase, row) and (block, slice, row, column)
                driven = seen[fms].permute(0, 2, 3, 1, 4).flatten(3)
                cells = kernel[out[:, None, :], local][..., tap.flatten()]
                cells = cells.view(*cells.shape[:3], *tap.shape).permute(0, 3, 1, 4, 2, 5)
                cells = cells.flatten(4).flatten(2, 3)
                copy = part * slices + torch.arange(some.start, some.stop)
                number = copy * len(packing) + torch.arange(blocks.start, blocks.stop)[:, None]
                sums = _multiply(driven, cells, number, layer.crossbar.rows, product)
                sums = sums.view(*sums.shape[:3], kout, outputs).permute(0, 3, 1, 2, 4)
                total[:, some].index_add_(0, out.flatten(), sums.flatten(0, 1))
    total = total[:-1].view(-1, tall, broad, batch, tall_phases, broad_phases, *window)
    whole = total.permute(3, 0, 1, 4, 6, 2, 5, 7).flatten(5).flatten(2, 4)
    return whole[..., : geometry.out_size[0], : geometry.out_size[1]]


def _multiply(
    driven: Tensor, cells: Tensor, number: Tensor, limit: int, product: Product
) -> Tensor:
    """All crossbars of a chunk; rows beyond the crossbar's go to further ones, which are added.

    Args:
        driven: (blocks, slices, phases, rows).
        cells: (blocks, slices, rows, columns).
        number: (blocks, slices), of each block's copy.
        limit: rows of a crossbar.
        product: as in `execute_layer`.

    Returns:
        (blocks, slices, phases, columns).
    """
    blocks, slices, phases, rows = driven.shape
    splits = ceil_div(rows, limit)
    if splits > 1:
        short = splits * limit - rows
        driven = F.pad(driven, (0, short)).unflatten(3, (splits, limit)).transpose(2, 3)
        cells = F.pad(cells, (0, 0, 0, short)).unflatten(2, (splits, limit))
    else:
        driven, cells = driven.unsqueeze(2), cells.unsqueeze(2)
    number = number[:, :, None] * splits + torch.arange(splits)
    sums = product(driven.flatten(0, 2), cells.flatten(0, 2), number.flatten().to(cells.device))
    return sums.view(blocks, slices, splits, phases, -1).sum(2)


def _positions(
    down: Axis, across: Axis, part: int, some: slice, geometry: LayerGeometry
) -> tuple[Tensor, Tensor]:
    """Flat input and kernel positions of one part, for some slices.

    Returns:
        reads (slices, vertical phases, horizontal phases, rows) and taps (slices, rows, outputs);
        rows and outputs run across first, then down.
    """
    slices = torch.arange(some.start, some.stop)
    i, j = slices // across.reads.shape[1], slices % across.reads.shape[1]
    v, h = down.reads[part, i], across.reads[0, j]
    read = v[:, :, None, :, None] * (geometry.in_size[1] + 1) + h[:, None, :, None, :]
    v, h = down.taps[part, i], across.taps[0, j]
    tap = v[:, :, None, :, None] * (geometry.kernel[1] + 1) + h[:, None, :, None, :]
    return read.flatten(3), tap.flatten(3).flatten(1, 2)


def _or_none(table: Tensor, value: Tensor, none: int) -> Tensor:
    """The value where the table has an entry, the index of the zero where it has -1."""
    return torch.where(table >= 0, value, none)


def _chunks(count: int, cost: int) -> Iterator[slice]:
    """0..count-1 in runs of which each costs about _CHUNK numbers."""
    step = max(_CHUNK // max(cost, 1), 1)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def _check_fits(layer: LayerPlan, geometry: LayerGeometry, down: Axis, across: Axis) -> None:
    """Raises if a call needs more of the chip than the plan has."""
    slices = down.reads.shape[1] * across.reads.shape[1]
    fm_rows = down.reads.shape[3] * across.reads.shape[3]
    if slices > layer.slices or fm_rows > layer.tiling.fm_rows:
        size, planned = geometry.in_size, layer.geometry.in_size
        raise PlanError(
            f"{layer.name}: an input of {size[0]}x{size[1]} does not fit the plan, which was made "
            f"for {planned[0]}x{planned[1]}: plan the model again with this input_shape."
        )
