"""What the unrolled kernel matrix of a layer is, for each operation of torch that has one.

Every operation is computed as a two-dimensional convolution: maps (N, Cin, H, W) with a matrix
(Cout, Cin / G, kh, kw).

* Linear: a 1x1 kernel, one position.
* Conv1d: down the height, a width of 1.
* Conv2d: as it is.
* Conv3d: input FMs are (channel, kernel depth) pairs; each output depth is a map of its own.
* ConvTranspose1d / 2d: a convolution of stride 1 with the flipped kernel over the input with
  `stride - 1` zeros put between its values (Dumoulin and Visin, 2016).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crosspruner.hardware.geometry import pair

_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}

OPERATIONS: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.linear: ("linear", ()),
    F.conv1d: ("conv1d", _CONV),
    F.conv2d: ("conv2d", _CONV),
    F.conv3d: ("conv3d", _CONV),
    F.conv_transpose1d: ("conv_transpose1d", _TRANSPOSED),
    F.conv_transpose2d: ("conv_transpose2d", _TRANSPOSED),
}
"""Function of torch -> (operation, its options in their order)."""


@dataclass(frozen=True)
class Unrolled:
    """One call of a layer, as a two-dimensional convolution."""

    maps: Tensor
    """(N, Cin, height, width)."""
    matrix: Tensor
    """(Cout, Cin / G, kh, kw)."""
    stride: tuple[int, int]
    padding: tuple[int, int]
    """Zeros above and to the left; negative: what is cut off."""
    dilation: tuple[int, int]
    groups: int
    out_size: tuple[int, int]
    shape: tuple[int, ...]
    """Of the maps' leading axes in the layer's own output; how `restore` folds N back."""
    operation: str

    def restore(self, maps: Tensor) -> Tensor:
        """The layer's output in its own shape.

        Args:
            maps: (N, Cout, *out_size).
        """
        if self.operation == "linear":
            return maps.reshape(*self.shape, maps.shape[1])
        if self.operation == "conv3d":
            maps = maps.unflatten(0, (-1, self.shape[-1])).transpose(1, 2)
        elif self.operation.endswith("1d"):
            maps = maps.squeeze(3)
        return maps if len(self.shape) > (self.operation == "conv3d") else maps[0]


def unroll(operation: str, x: Tensor, weight: Tensor, options: dict[str, Any]) -> Unrolled:
    """A call of torch's function as a two-dimensional convolution.

    Args:
        operation: a name in OPERATIONS.
        x: the function's input.
        weight: its weight.
        options: its stride, padding, ... where they are not the default.
    """
    matrix = to_matrix(operation, weight, options.get("groups", 1))
    if operation == "linear":
        vectors = x.reshape(-1, x.shape[-1], 1, 1)
        one = (1, 1)
        return Unrolled(vectors, matrix, one, (0, 0), one, 1, one, tuple(x.shape[:-1]), operation)
    given = _DEFAULTS | options
    dims = weight.dim() - 2
    stride, dilation = _each(given["stride"], dims), _each(given["dilation"], dims)
    kernel, batched = tuple(weight.shape[2:]), x.dim() == dims + 2
    x = x if batched else x.unsqueeze(0)
    shape: tuple[int, ...] = (len(x),) if batched else ()
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if operation.startswith("conv_transpose"):
        padding, extra = _each(given["padding"], dims), _each(given["output_padding"], dims)
        x = _with_zeros_between(x, stride)
        before = [r - p for r, p in zip(reach, padding, strict=True)]
        out = [
            n + b + r - p + e - r
            for n, b, r, p, e in zip(x.shape[2:], before, reach, padding, extra, strict=True)
        ]
        stride = (1,) * dims
    else:
        before, after = padding_before_and_after(given["padding"], reach)
        sizes = zip(x.shape[2:], before, after, reach, stride, strict=True)
        out = [(n + b + a - r - 1) // s + 1 for n, b, a, r, s in sizes]
    if operation == "conv3d":
        shape = (*shape, out[0])
        x = _depths(x, kernel[0], stride[0], dilation[0], before[0], out[0])
        stride, before, dilation, out = stride[1:], before[1:], dilation[1:], out[1:]
    elif dims == 1:
        x, out = x.unsqueeze(3), [*out, 1]
        stride, before, dilation = (*stride, 1), [*before, 0], (*dilation, 1)
    return Unrolled(
        *(x, matrix, pair(stride), pair(before), pair(dilation), given["groups"], pair(out)),
        *(shape, operation),
    )


def to_matrix(operation: str, weight: Tensor, groups: int = 1) -> Tensor:
    """A weight as (Cout, Cin / G, kh, kw); a view wherever that is possible."""
    if operation.startswith("conv_transpose"):
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        weight = weight.flip(tuple(range(2, weight.dim())))
    if operation == "conv3d":
        return weight.flatten(1, 2)
    return weight.reshape(*weight.shape, *[1] * (4 - weight.dim()))


def from_matrix(operation: str, matrix: Tensor, shape: tuple[int, ...], groups: int = 1) -> Tensor:
    """Undoes `to_matrix`: (..., Cout, Cin / G, kh, kw) in the layer's own weight shape."""
    several = matrix.shape[:-4]
    if operation.startswith("conv_transpose"):
        matrix = matrix.flip((-2, -1)).unflatten(-4, (groups, -1)).transpose(-4, -3)
    return matrix.reshape(*several, *shape)


def padding_before_and_after(padding: Any, reach: list[int]) -> tuple[list[int], list[int]]:
    """The padding of a convolution along each axis: before it, and after it.

    Args:
        padding: as torch takes it: "valid", "same", one number or one for each axis.
        reach: dilation * (kernel - 1) of each axis; "same" puts the odd one at the end.
    """
    if padding == "valid":
        return [0] * len(reach), [0] * len(reach)
    if padding == "same":
        return [n // 2 for n in reach], [n - n // 2 for n in reach]
    each = list(_each(padding, len(reach)))
    return each, each


def _with_zeros_between(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    if all(s == 1 for s in stride):
        return x
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    every = [slice(None, None, s) for s in stride]
    spread[(slice(None), slice(None), *every)] = x
    return spread


def _depths(x: Tensor, kernel: int, stride: int, dilation: int, before: int, out: int) -> Tensor:
    """(B, C, D, H, W) -> (B * out, C * kernel, H, W): the depths that each output depth reads."""
    after = max((out - 1) * stride + (kernel - 1) * dilation + 1 - x.shape[2] - before, 0)
    x = F.pad(x, (0, 0, 0, 0, before, after))
    depth = torch.arange(out)[:, None] * stride + torch.arange(kernel) * dilation
    seen = x[:, :, depth.to(x.device)]  # (B, C, out, kernel, H, W)
    return seen.transpose(1, 2).flatten(0, 1).flatten(1, 2)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values
