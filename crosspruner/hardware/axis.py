"""Where crossbar rows read their inputs, and which kernel tap each cell holds, along one axis.

A convolution's height and width can be laid out independently. Along one axis a crossbar either

* slides: it serves one output per phase, and its rows follow that output, or
* stands: it serves a window of neighbouring outputs at once, its rows stay on the inputs under the
  window, and its cells hold one copy of the kernel per output, each shifted by the stride: a band.

Folded slides along both axes, semi-folded slides down and stands across, unfolded stands along
both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.mapping import Tiling


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of all crossbars of a block: `parts` kernel rows apart, `slices` copies.

    Outputs along the axis come as slice, then phase, then output of the window.
    """

    reads: Tensor
    """(parts, slices, phases, rows) int64: input position; the input size = none, a zero."""
    taps: Tensor
    """(parts, slices, rows, outputs) int64: kernel position; the kernel size = none, no cell."""


def axes(geometry: LayerGeometry, tiling: Tiling) -> tuple[Axis, Axis]:
    """The vertical and the horizontal axis of a layer.

    Args:
        geometry: the sizes that the layer runs at.
        tiling: how it is cut.

    Returns:
        (vertical, horizontal). Only the vertical one has several parts, with kernel_rows=one.
    """
    high, wide = tiling.window
    apart = tiling.kernel_rows == "one"
    down = _standing(geometry, 0, high, apart)
    if tiling.mapping != "unfolded":
        down = _sliding(geometry, 0, apart)
    if tiling.mapping == "folded":
        return down, _sliding(geometry, 1, False)
    return down, _standing(geometry, 1, wide, False)


def taps_held(geometry: LayerGeometry, tiling: Tiling) -> Tensor:
    """(kh, kw) bool: kernel positions that have a cell; the others only ever meet padding."""
    down, across = (
        torch.isin(torch.arange(kernel), axis.taps)
        for axis, kernel in zip(axes(geometry, tiling), geometry.kernel, strict=True)
    )
    return down[:, None] & across


def _sliding(geometry: LayerGeometry, axis: int, apart: bool) -> Axis:
    size, kernel = geometry.in_size[axis], geometry.kernel[axis]
    starts = torch.arange(geometry.out_size[axis]) * geometry.stride[axis] - geometry.padding[axis]
    taps = torch.arange(kernel)
    reads = starts[:, None] + taps * geometry.dilation[axis]
    reads = torch.where((reads >= 0) & (reads < size), reads, size)
    if apart:
        return Axis(reads.T[:, None, :, None], taps.view(kernel, 1, 1, 1))
    return Axis(reads[None, None], taps.view(1, 1, kernel, 1))


def _standing(geometry: LayerGeometry, axis: int, window: int, apart: bool) -> Axis:
    size, kernel = geometry.in_size[axis], geometry.kernel[axis]
    stride, dilation = geometry.stride[axis], geometry.dilation[axis]
    slices = -(-geometry.out_size[axis] // window)
    outputs = torch.arange(slices * window).view(slices, window)
    starts = outputs * stride - geometry.padding[axis]
    # A part is one kernel row, or all of them (the reach of the part's last tap counts).
    offsets = torch.arange(kernel if apart else 1) * dilation
    reach = 0 if apart else (kernel - 1) * dilation
    rows = min(size, (window - 1) * stride + reach + 1)
    # At the borders the window is pushed inside: rows never read padding.
    first = (offsets[:, None] + starts[:, 0]).clamp(0, size - rows)
    reads = first[..., None] + torch.arange(rows)
    distance = reads[..., None] - starts[:, None, :]
    taps = distance // dilation
    inside = (distance % dilation == 0) & (taps >= 0) & (taps < kernel)
    if apart:
        inside &= taps == torch.arange(kernel)[:, None, None, None]
    inside &= (outputs < geometry.out_size[axis])[:, None, :]
    return Axis(reads[:, :, None, :], torch.where(inside, taps, kernel))
