"""Fault-aware placement: which column, and which row, of a crossbar with known faults holds what.

Where a column's sum is added is a table, and so is which input drives a row: both may be permuted
crossbar by crossbar at no cost in cells. Each permutation is the cheapest assignment of what is to
be stored to where it would be stored, the cost being the squared error that the stuck cells there
would make of it. Columns and rows that a crossbar does not use count as well: the worst faults go
there.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosspruner.hardware import full_scale
from crosspruner.hardware.cell_map import cell_number
from crosspruner.hardware.cells import Stored, store, stuck
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.device import Device
from crosspruner.hardware.execute import execute_layer
from crosspruner.hardware.layer_plan import LayerPlan


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the planned rows and columns of some crossbars really are."""

    rows: Tensor
    """(n, rows) int64: physical row of each planned one."""
    columns: Tensor
    """(n, weight_columns) int64: physical column, in weights."""


def place_layer(layer: LayerPlan, weight: Tensor, device: Device, seed: int) -> Placement:
    """Places all crossbars of a layer on a chip, see `place`.

    Args:
        layer: the layer's plan.
        weight: (Cout, Cin / G, kh, kw).
        device: its fault rates, `placement` and `compensate`.
        seed: of the chip.

    Returns:
        The permutations of its n = `compute_crossbars` crossbars, by number.
    """
    crossbar = layer.crossbar
    rows = torch.empty(layer.compute_crossbars, crossbar.rows, dtype=torch.int64)
    columns = torch.empty(layer.compute_crossbars, crossbar.weight_columns, dtype=torch.int64)
    scale = full_scale.of_crossbars(layer, weight, device)

    def look(driven: Tensor, cells: Tensor, number: Tensor) -> Tensor:
        stored = store(cells, scale(cells), device, crossbar)
        found = place(stored, device, crossbar, seed, layer.name, number)
        rows[number], columns[number] = found.rows, found.columns
        return driven.new_zeros(*driven.shape[:2], cells.shape[2])

    blank = weight.new_zeros(1, layer.geometry.in_channels, *layer.geometry.in_size)
    execute_layer(layer, blank, weight, look)
    return Placement(rows, columns)


def place(
    stored: Stored, device: Device, crossbar: Crossbar, seed: int, layer: str, number: Tensor
) -> Placement:
    """Chooses where the columns (and rows) of crossbars with known faults go.

    Columns are assigned, then rows to what that left, then columns again.

    Args:
        stored: levels (cells per weight, n, rows in use, columns in use) of n whole crossbars.
        device: its fault rates, `placement` and `compensate`.
        crossbar: the array.
        seed: of the chip.
        layer: name of the layer.
        number: (n,) of the crossbars within the layer.

    Returns:
        The permutations; identities where `device.placement` leaves a side alone.

    Source: mapping by bipartite matching, Xia et al., "Stuck-at fault tolerance in RRAM computing
    systems", JETCAS 2018, and others since; alternating between columns and rows is our reading.
    """
    rows, columns = crossbar.rows, crossbar.weight_columns
    here = torch.arange(rows), torch.arange(columns)
    row_place = here[0].repeat(len(number), 1)
    column_place = here[1].repeat(len(number), 1)
    if device.placement == "none":
        return Placement(row_place, column_place)
    cell = cell_number(crossbar, number[:, None, None], here[0][:, None], here[1])
    fault = stuck(device, seed, layer, cell[: len(stored.levels)])
    faults = torch.cat([fault > 0, fault < 0]).float()
    errors = _errors(stored, device, rows, columns).float()
    for side in ("columns", "rows", "columns") if device.placement == "both" else ("columns",):
        if side == "columns":
            found = faults.gather(2, row_place[None, :, :, None].expand_as(faults))
            column_place = _assign(torch.einsum("pnrc,pnrd->ncd", errors, found))
        else:
            found = faults.gather(3, column_place[None, :, None, :].expand_as(faults))
            row_place = _assign(torch.einsum("pnrc,pnsc->nrs", errors, found))
    return Placement(row_place, column_place)


def _errors(stored: Stored, device: Device, rows: int, columns: int) -> Tensor:
    """Squared error of each weight if one of its cells is stuck on, then if it is stuck off.

    Returns:
        (2 * cells per weight, n, rows, columns); 0 where nothing is stored.
    """
    worth = torch.tensor(stored.worth).view(-1, 1, 1, 1)
    if device.compensate:  # the partner makes up for all but a wrong sign
        wanted = stored.levels[0] - stored.levels[1]
        above, below = wanted.clamp(min=0), (-wanted).clamp(min=0)
        left = torch.stack([below, above, above, below])
    else:
        left = torch.cat([(stored.most - stored.levels) * worth, stored.levels * worth])
    left = (left * stored.unit).square()
    whole = left.new_zeros(*left.shape[:2], rows, columns)
    whole[:, :, : left.shape[2], : left.shape[3]] = left
    return whole


def _assign(cost: Tensor) -> Tensor:
    """The cheapest assignment of each (n, size, size) cost: (n, size) place of each."""
    from scipy.optimize import linear_sum_assignment  # a slow import that few runs need

    solved = [linear_sum_assignment(each)[1] for each in cost.numpy()]
    return torch.from_numpy(np.stack(solved).astype(np.int64))
