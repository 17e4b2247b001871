"""Random numbers that belong to a place: one cell of one crossbar of one chip.

A chip is a seed. Whatever order its cells are looked at in, in whatever portions, each finds the
same numbers, so that a crossbar simulated alone, in a batch, or only in part is the same crossbar.
"""

import math
import zlib
from enum import IntEnum

import torch
from torch import Tensor

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


class Effect(IntEnum):
    """What a number is drawn for; each has a stream of its own."""

    LOGNORMAL = 0
    GAUSSIAN = 1
    FAULT = 2
    DRIFT = 3


def uniform(seed: Tensor | int, layer: str, effect: Effect, cell: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), one per cell.

    Args:
        seed: of the chip; a tensor of several broadcasts against `cell`.
        layer: name of the layer that the cell belongs to.
        effect: the stream.
        cell: any shape, int64: number of the cell within its layer.

    Returns:
        float32, of the broadcast shape; multiples of 2^-24, odd ones.

    Source: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) with the cell as its counter.
    """
    start = _mixed(torch.as_tensor(seed, device=cell.device) * _GAMMA + _label(layer, effect))
    bits = _shifted(_mixed(start + cell * _GAMMA), 41)
    return (bits.float() + 0.5) * 2.0**-23


def normal(seed: Tensor | int, layer: str, effect: Effect, cell: Tensor) -> Tensor:
    """Standard normal numbers, one per cell, within 5.3 standard deviations; else as `uniform`."""
    return torch.erfinv(2 * uniform(seed, layer, effect, cell) - 1) * math.sqrt(2)


def _label(layer: str, effect: Effect) -> int:
    return (zlib.crc32(layer.encode()) << 8) + int(effect)


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64, on numbers that wrap around at 2^64."""
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift to the right, filling with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
