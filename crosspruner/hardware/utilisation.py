"""How much of a layer is in use: the kernels that are kept, and what crossbars hold of each."""

import torch
from torch import Tensor

from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.mapping import Tiling, ceil_div


def kept_kernels(geometry: LayerGeometry, tiling: Tiling, mask: Tensor | None, grain: str) -> int:
    """Pairs of an input and an output FM whose kernel is kept.

    Args:
        geometry: the layer's shapes.
        tiling: how it is cut.
        mask: bool, (G / bundle * Q, P) at crossbar grain, (Cout, P) at column grain; None = dense.
        grain: crossbar or column.
    """
    if mask is None:
        return geometry.out_channels * geometry.group_inputs
    kept = mask.long() @ _group_sizes(geometry.group_inputs, tiling.kin)
    if grain == "crossbar":
        section = _group_sizes(geometry.group_outputs // geometry.sections, tiling.kout)
        lanes = geometry.conv_groups // tiling.bundle * geometry.sections
        kept = kept * (section * tiling.bundle).repeat(lanes)
    return int(kept.sum())


def weights_per_kernel(geometry: LayerGeometry, mapping: str) -> int:
    """Weights that crossbars hold of one kernel: with copies, without those under zero padding.

    Args:
        geometry: the layer's shapes.
        mapping: folded, semifolded or unfolded.
    """
    kh, kw = geometry.kernel
    if mapping == "folded":
        return kh * kw
    if mapping == "semifolded":
        return kh * _taps_inside(geometry, 1)
    return _taps_inside(geometry, 0) * _taps_inside(geometry, 1)


def _taps_inside(geometry: LayerGeometry, axis: int) -> int:
    """(output, kernel) positions along one axis that read a real input, not zero padding."""
    outputs = torch.arange(geometry.out_size[axis]) * geometry.stride[axis]
    taps = torch.arange(geometry.kernel[axis]) * geometry.dilation[axis]
    place = outputs[:, None] + taps - geometry.padding[axis]
    return int(((place >= 0) & (place < geometry.in_size[axis])).sum())


def _group_sizes(fms: int, group: int) -> Tensor:
    """Sizes of full groups, then the rest: (ceil(fms / group),) int64."""
    sizes = torch.full((ceil_div(fms, group),), group)
    sizes[-1] = fms - group * (len(sizes) - 1)
    return sizes
