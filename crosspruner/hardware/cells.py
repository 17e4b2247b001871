"""Weights in cells: the levels that stand for a weight, and the conductances that come of them.

A level is a whole number from 0 (off) to `most` (fully on), or any value between where weights are
not quantised. A conductance is counted in levels too: that of an off cell is `floor`, that of a
fully-on cell `most + floor`. A weight is unit * (sum over its cells of worth * level - shift).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosspruner.errors import ConfigError
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.device import Device
from crosspruner.hardware.draws import Effect, normal, uniform
from crosspruner.hardware.integer import cell_planes

Seed = Tensor | int


@dataclass(frozen=True, eq=False)
class Stored:
    """Weights as the cells are asked to hold them."""

    levels: Tensor
    """(cells per weight, *weights), in the order of their columns."""
    worth: tuple[float, ...]
    """What a level counts in each of them; negative for the negative half of a pair."""
    most: float
    """Level of a fully-on cell."""
    shift: float
    """What is subtracted again where weights are stored shifted, else 0."""
    unit: Tensor
    """Weight of one level; broadcasts against the weights."""

    def weights(self, conductance: Tensor, floor: float) -> Tensor:
        """The weights that cells of these conductances amount to.

        Args:
            conductance: (..., cells per weight, *weights), in levels.
            floor: that of an off cell.
        """
        cells = self.levels.dim() - 1
        parts = conductance.unbind(conductance.dim() - cells - 1)
        whole = sum(worth * (part - floor) for worth, part in zip(self.worth, parts, strict=True))
        assert isinstance(whole, Tensor)
        return (whole - self.shift) * self.unit if self.shift else whole * self.unit


def store(weights: Tensor, scale: Tensor, device: Device, crossbar: Crossbar) -> Stored:
    """Turns weights into levels.

    Args:
        weights: any shape, floating.
        scale: the weight that fills a cell, above 0; broadcasts against the weights. Larger ones
            are clipped to it.
        device: its `weight_bits`.
        crossbar: its `cell_bits` and `differential`.

    Returns:
        The levels, of the weights' dtype. Quantisation is symmetric: 2^(bits - 1) - 1 steps on
        either side of zero, as in `IntegerArithmetic`.

    Raises:
        ConfigError: the weight does not fit the cells that the crossbar has for it.
    """
    check_cells(device, crossbar)
    bits, paired = device.weight_bits, crossbar.differential
    if bits is None:
        share = weights / scale
        if paired:
            return Stored(
                torch.stack([share.clamp(min=0), (-share).clamp(min=0)]), (1, -1), 1, 0, scale
            )
        return Stored(((share + 1) / 2)[None], (2,), 1, 1, scale)
    steps = 2 ** (bits - 1) - 1
    whole = (weights / (scale / steps)).round().clamp(-steps, steps)
    planes = list(cell_planes(whole, replace(crossbar, weight_bits=bits)))
    return Stored(
        torch.stack([plane for _, plane in planes]),
        tuple(worth for worth, _ in planes),
        2 ** min(crossbar.cell_bits, bits - 1 if paired else bits) - 1,
        0 if paired else 2 ** (bits - 1),
        scale / steps,
    )


def check_cells(device: Device, crossbar: Crossbar) -> None:
    """Raises ConfigError if a weight of the device does not fit the crossbar's cells for it."""
    signs = 2 if crossbar.differential else 1
    slices = crossbar.cells_per_weight // signs
    if device.weight_bits is None:
        if slices > 1:
            raise ConfigError(
                f"the crossbar slices a weight over {slices} cells of {crossbar.cell_bits} bits, "
                "which takes whole numbers: set device.weight_bits, or "
                f"crossbar.cell_bits={crossbar.weight_bits} for one cell a weight."
            )
    elif -(-device.weight_bits // crossbar.cell_bits) > slices:
        raise ConfigError(
            f"device.weight_bits={device.weight_bits} needs "
            f"{-(-device.weight_bits // crossbar.cell_bits)} cells of {crossbar.cell_bits} bits, "
            f"the crossbar has {slices}: set crossbar.weight_bits={device.weight_bits} as well."
        )
    if device.compensate and (slices > 1 or not crossbar.differential):
        raise ConfigError(
            "device.compensate=true programs one cell of a pair against the other: it needs "
            "crossbar.differential=true (or mapping=liang2018) and one cell a sign."
        )


def conductances(stored: Stored, device: Device, seed: Seed, layer: str, cell: Tensor) -> Tensor:
    """What the cells of a chip hold instead, in levels.

    In this order: programming variation, drift, and stuck cells, which do neither.

    Args:
        stored: what they were asked to hold.
        device: its effects; those that are off leave every number as it is.
        seed: of the chip. A tensor of several, with a 1 for every dimension of `stored.levels`
            after its own, gives that many chips at once.
        layer: name of the layer.
        cell: number of each cell within the layer; of the shape of `stored.levels`.

    Returns:
        (*chips, cells per weight, *weights).
    """
    floor = stored.most * device.floor
    held = stored.levels
    fault = stuck(device, seed, layer, cell) if device.has_faults else None
    if fault is not None and device.compensate:
        held = compensated(held, fault, stored.most)
    held = held + floor
    if device.lognormal:
        # Of a pair without floor one cell is empty, and stays so whatever it is multiplied by.
        one_of_pair = len(stored.levels) == 2 and not (stored.shift or floor or device.compensate)
        varied = torch.where(stored.levels[:1] > 0, cell[:1], cell[1:]) if one_of_pair else cell
        held = held * (device.lognormal * normal(seed, layer, Effect.LOGNORMAL, varied)).exp()
    if device.gaussian:
        spread = device.gaussian * stored.most
        held = (held + spread * normal(seed, layer, Effect.GAUSSIAN, cell)).clamp(min=0)
    if device.drifts:
        held = held * _drift(device, seed, layer, cell)
    if fault is not None:
        held = torch.where(fault == 0, held, floor + stored.most * (fault > 0))
    return held.to(stored.levels.dtype)


def stuck(device: Device, seed: Seed, layer: str, cell: Tensor) -> Tensor:
    """Which cells are stuck: int8, -1 = off, 1 = fully on, 0 = not; shapes as `conductances`."""
    where = uniform(seed, layer, Effect.FAULT, cell)
    off, on = where < device.stuck_off, where > 1 - device.stuck_on
    return on.to(torch.int8) - off.to(torch.int8)


def compensated(levels: Tensor, fault: Tensor, most: float) -> Tensor:
    """Levels with which the healthy cell of a pair makes up for its stuck partner, where it can.

    Args:
        levels: (2, *weights): positive and negative cell.
        fault: (*chips, 2, *weights), as `stuck` gives it.
        most: level of a fully-on cell.

    Returns:
        (*chips, 2, *weights); a pair of two healthy or two stuck cells is as it was.
    """
    pair = fault.dim() - levels.dim()
    positive, negative = levels.expand(fault.shape).unbind(pair)
    bad_positive, bad_negative = fault.unbind(pair)
    wanted = positive - negative
    other_negative = (most * (bad_positive > 0) - wanted).clamp(0, most)
    other_positive = (most * (bad_negative > 0) + wanted).clamp(0, most)
    positive = torch.where((bad_positive == 0) & (bad_negative != 0), other_positive, positive)
    negative = torch.where((bad_negative == 0) & (bad_positive != 0), other_negative, negative)
    return torch.stack([positive, negative], pair)


def _drift(device: Device, seed: Seed, layer: str, cell: Tensor) -> Tensor | float:
    """Factor on each conductance, the compensation included."""
    if not device.drift_spread:
        return 1.0 if device.drift_compensated else device.drift_time**-device.drift
    exponent = device.drift + device.drift_spread * normal(seed, layer, Effect.DRIFT, cell)
    factor = device.drift_time**-exponent
    return factor * device.drift_time**device.drift if device.drift_compensated else factor
