"""The full-scale weight: which one fills a cell, for a layer or for each column of a crossbar."""

from collections.abc import Callable

import torch
from torch import Tensor

from crosspruner.hardware.axis import taps_held
from crosspruner.hardware.cell_map import CellMap
from crosspruner.hardware.device import Device
from crosspruner.hardware.layer_plan import LayerPlan

# Full scales that are tried, as shares of the largest weight: 5 % apart, down to an eighth.
_SHARES = [0.95**i for i in range(41)]


def of_crossbars(layer: LayerPlan, weight: Tensor, device: Device) -> Callable[[Tensor], Tensor]:
    """The weight that fills a cell, as a function of the (n, rows, columns) crossbars that hold it.

    Args:
        layer: the layer's plan; weights that are not in it, or have no cell since they only ever
            meet padding, do not count.
        weight: (Cout, Cin / G, kh, kw).
        device: its `weight_scale`, one for the layer or one per column of a crossbar, its
            `weight_range` and `weight_bits`.

    Returns:
        A function that gives a scale above 0 which broadcasts against the crossbars.
    """
    if device.weight_scale == "column":
        return lambda cells: _fitted(
            cells, _positive(cells.abs().amax(1, keepdim=True)), device, _sum_of_column
        )
    there = layer.kept[..., None, None] & taps_held(layer.geometry, layer.tiling)
    kept = (weight * there.to(weight.device)).flatten()
    scale = _of_layer(kept[kept != 0], device)
    return lambda cells: scale


def of_weights(cells: CellMap, weights: Tensor, device: Device) -> Tensor:
    """The same for weights that are looked up in the cells of one copy.

    Args:
        cells: where they are.
        weights: (W,), in the order of the cells.
        device: as for `of_crossbars`.

    Returns:
        A scale above 0 that broadcasts against the weights.
    """
    if device.weight_scale == "layer":
        return _of_layer(weights[weights != 0], device)
    column = cells.column_of
    columns = int(column.max()) + 1 if len(column) else 0

    def sum_of_column(errors: Tensor) -> Tensor:
        return errors.new_zeros(columns).index_add(0, column, errors)[column]

    most = weights.new_zeros(columns).scatter_reduce(0, column, weights.abs(), "amax")
    return _fitted(weights, _positive(most)[column], device, sum_of_column)


def _of_layer(weights: Tensor, device: Device) -> Tensor:
    if not len(weights):
        return weights.new_ones(())
    return _fitted(weights, weights.abs().max(), device, Tensor.sum)


def _sum_of_column(errors: Tensor) -> Tensor:
    return errors.sum(1, keepdim=True)


def _fitted(
    weights: Tensor, most: Tensor, device: Device, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """The full scale among `_SHARES` of the largest weight that stores the weights best.

    Args:
        weights: any shape.
        most: the largest magnitude of those that share a scale, above 0; broadcasts against them.
        device: its `weight_range` and `weight_bits`.
        total: sums squared errors over those that share a scale; gives the shape of `most`.

    Source: clipping by least squared error, e.g. Banner et al., NeurIPS 2019; trying a grid of
    scales is the usual way to it.
    """
    if device.weight_range == "max" or device.weight_bits is None:
        return most
    steps = 2 ** (device.weight_bits - 1) - 1
    best, least = most, torch.full_like(most, torch.inf, dtype=torch.float64)
    for share in _SHARES:
        step = most * (share / steps)
        stored = weights.div(step).round_().clamp_(-steps, steps).mul_(step)
        error = total(stored.sub_(weights).double().square_())
        best = torch.where(error < least, most * share, best)
        least = torch.minimum(error, least)
    return best


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))
