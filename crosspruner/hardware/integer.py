"""Crossbars in whole numbers: bit-sliced weights on cells, inputs by digits, sums through an ADC.

A weight of `weight_bits` is spread over ceil(weight_bits / cell_bits) cells. Signs are stored

* differentially: positive and negative parts in two columns, subtracted after the ADC, or
* shifted: every cell column holds weight + 2^(weight_bits - 1), and the shift times the sum of the
  inputs is taken off again.

Inputs are applied digit by digit, `dac_bits` at a time, positive and negative inputs in turn. Each
column sum is read by an ADC, then shifted and added.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crosspruner.errors import ConfigError
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.execute import execute_layer
from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.layer_plan import LayerPlan


@dataclass(frozen=True)
class IntegerArithmetic:
    """How crossbars of limited precision compute a layer: `simulate(..., execute=this)`.

    Weights and inputs are quantised symmetrically, one scale per layer and per call. With an ADC of
    `lossless_adc_bits` or more, or none, the integer result is exact.

    Raises:
        ConfigError: a number of bits is below 1.

    Source: the bit slicing and the shifted storage follow ISAAC (Shafiee et al., ISCA 2016); the
    linear ADC over the full range is our reading.
    """

    input_bits: int = 8
    """Bits of an input; one of them is the sign unless all inputs are >= 0."""
    dac_bits: int = 1
    """Bits of an input that one phase applies."""
    adc_bits: int | None = None
    """Bits of the ADC, spread evenly over the largest sum a column can reach; None = exact."""

    def __post_init__(self) -> None:
        for name in ("input_bits", "dac_bits", "adc_bits"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: it must be at least 1.")

    def __call__(
        self, layer: LayerPlan, x: Tensor, weight: Tensor, geometry: LayerGeometry
    ) -> Tensor:
        """Quantises, computes in whole numbers, scales back.

        Args:
            layer: the layer's plan; its crossbar says weight_bits, cell_bits and differential.
            x: (batch, Cin, height, width).
            weight: (Cout, Cin / G, kh, kw).
            geometry: the sizes of this call.

        Returns:
            (batch, Cout, height, width), of x's dtype.
        """
        inputs, input_scale = quantise(x, self.input_bits, signed=bool((x < 0).any()))
        weights, weight_scale = quantise(weight, layer.crossbar.weight_bits)
        y = execute_layer(
            layer,
            inputs,
            weights,
            lambda driven, cells, _: self.product(driven, cells, layer.crossbar),
            geometry,
        )
        return (y * (input_scale * weight_scale)).to(x.dtype)

    def product(self, driven: Tensor, cells: Tensor, crossbar: Crossbar) -> Tensor:
        """Multiplies whole numbers on bit-sliced crossbars.

        Args:
            driven: (n, phases, rows), whole numbers in float64.
            cells: (n, rows, columns), weights likewise.
            crossbar: its bits and arrangement.

        Returns:
            (n, phases, columns), whole numbers unless the ADC rounds.
        """
        total = driven.new_zeros(*driven.shape[:2], cells.shape[2])
        planes = list(cell_planes(cells, crossbar))
        for digit_worth, digit in input_digits(driven, self.input_bits, self.dac_bits):
            for plane_worth, plane in planes:
                total += digit_worth * plane_worth * self._read(torch.bmm(digit, plane), crossbar)
        if not crossbar.differential:
            total -= 2 ** (crossbar.weight_bits - 1) * driven.sum(2, keepdim=True)
        return total

    def _read(self, sums: Tensor, crossbar: Crossbar) -> Tensor:
        if self.adc_bits is None:
            return sums
        step = max(full_scale(crossbar, self.dac_bits) / (2**self.adc_bits - 1), 1.0)
        return (sums / step).round() * step


def full_scale(crossbar: Crossbar, dac_bits: int) -> int:
    """The largest sum a column can reach: all rows driven fully, all cells full."""
    return crossbar.rows * (2**dac_bits - 1) * (2**crossbar.cell_bits - 1)


def lossless_adc_bits(crossbar: Crossbar, dac_bits: int = 1) -> int:
    """The narrowest ADC that reads every column sum exactly, in bits."""
    return full_scale(crossbar, dac_bits).bit_length()


def quantise(x: Tensor, bits: int, signed: bool = True) -> tuple[Tensor, float]:
    """Rounds to whole numbers of `bits` bits, zero staying zero.

    Args:
        x: any shape, floating.
        bits: >= 2 if signed, of which one is the sign.
        signed: False for values that are all >= 0.

    Returns:
        The whole numbers, float64, |q| <= 2^(bits - 1) - 1 (signed) or 0 <= q <= 2^bits - 1; and
        the scale: x is about q * scale.

    Raises:
        ConfigError: fewer than 2 bits for signed values.
    """
    if signed and bits < 2:
        raise ConfigError(f"{bits} bit cannot hold a sign and a value: use 2 bits or more.")
    most = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    largest = float(x.abs().max()) if x.numel() else 0.0
    scale = largest / most if largest > 0 else 1.0
    return (x.double() / scale).round(), scale


def cell_planes(cells: Tensor, crossbar: Crossbar) -> Iterator[tuple[int, Tensor]]:
    """The cell columns that hold a matrix of whole weights, each with what it is worth.

    Args:
        cells: weights, |w| < 2^(weight_bits - 1), float64.
        crossbar: its weight_bits, cell_bits and differential.

    Yields:
        (worth, plane): planes of cells_per_weight cells in all, each 0 to 2^cell_bits - 1. The sum
        of worth * plane is the weight, plus the shift if not differential.
    """
    if crossbar.differential:
        stored = [(1, cells.clamp(min=0)), (-1, (-cells).clamp(min=0))]
    else:
        stored = [(1, cells + 2 ** (crossbar.weight_bits - 1))]
    for sign, values in stored:
        for worth, digit in _digits(values, crossbar.weight_bits, crossbar.cell_bits):
            yield sign * worth, digit


def input_digits(driven: Tensor, bits: int, dac_bits: int) -> Iterator[tuple[int, Tensor]]:
    """The digits by which inputs are applied, each with what it is worth; negative ones apart."""
    for sign, values in ((1, driven.clamp(min=0)), (-1, (-driven).clamp(min=0))):
        if sign == 1 or bool(values.any()):
            for worth, digit in _digits(values, bits, dac_bits):
                yield sign * worth, digit


def _digits(values: Tensor, bits: int, digit_bits: int) -> Iterator[tuple[int, Tensor]]:
    for low in range(0, bits, digit_bits):
        yield 2**low, (values / 2**low).floor() % 2**digit_bits
