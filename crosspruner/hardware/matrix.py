"""What the unrolled kernel matrix of a layer is: the one place that knows the kinds of layers.

Every layer is computed as a two-dimensional convolution: maps (N, Cin, H, W) with a matrix
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
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.hardware.geometry import pair

LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.Linear,
)
"""Modules that go on crossbars, and their subclasses. Attention projections are Linear layers, see
`attention`."""

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
        before, after = _padding(given["padding"], reach)
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


def operation_of(module: nn.Module) -> str:
    """The operation that a module of LAYERS computes."""
    for kind, name in (
        (nn.Linear, "linear"),
        (nn.ConvTranspose1d, "conv_transpose1d"),
        (nn.ConvTranspose2d, "conv_transpose2d"),
        (nn.Conv1d, "conv1d"),
        (nn.Conv2d, "conv2d"),
        (nn.Conv3d, "conv3d"),
    ):
        if isinstance(module, kind):
            return name
    raise TypeError(f"{type(module).__name__} is no layer that goes on crossbars")


def stored_as_matrix(module: nn.Module) -> bool:
    """Whether the weight of a module of LAYERS lies as (Cout, Cin / G, ...).

    Not to be told by the shapes: those of a square transposed convolution agree.
    """
    return operation_of(module) in ("linear", "conv1d", "conv2d")


def matrix_shape(module: nn.Module) -> tuple[int, int, int, int]:
    """(Cout, Cin / G, kh, kw) of a module of LAYERS."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features, 1, 1
    assert isinstance(module, nn.modules.conv._ConvNd)
    return tuple(to_matrix(operation_of(module), _blank(module), module.groups).shape)  # type: ignore[return-value]


def conv_padding(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Padding of a convolution as ((before, after) of each axis).

    "same" puts the odd one of an even kernel's padding at the end, as PyTorch does.
    """
    assert isinstance(module, nn.modules.conv._ConvNd)
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return tuple(zip(*_padding(module.padding, reach), strict=True))


def padded_maps(module: nn.Module, x: Tensor, out_size: tuple[int, int]) -> Tensor:
    """The maps that a layer's kernel slides over, padding included.

    Args:
        module: one of LAYERS.
        x: its input, in its own shape.
        out_size: height and width of its output maps. From it follows what a subclass pads in its
            forward pass (TensorFlow's SAME): half of what is missing, rounded down, first.

    Returns:
        (N, Cin, H, W) of exactly the size that a kernel without padding turns into `out_size`.
    """
    operation = operation_of(module)
    if operation == "linear":
        if x.dim() == 1:
            x = x.unsqueeze(0)
        return x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2).unsqueeze(3)
    assert isinstance(module, nn.modules.conv._ConvNd)
    options: dict[str, Any] = {"stride": module.stride, "dilation": module.dilation}
    transposed = operation.startswith("conv_transpose")
    if transposed:
        options["padding"] = module.padding
    elif operation == "conv3d" or module.padding_mode != "zeros":
        x = _padded_by(module, x)
    else:
        options["padding"] = module.padding
    found = unroll(operation, x, _blank(module), options | {"groups": module.groups})
    kernel, size = found.matrix.shape[2:], found.maps.shape[2:]
    axes = list(zip(size, out_size, kernel, found.stride, found.dilation, strict=True))
    missing = [(o - 1) * s + d * (k - 1) + 1 - n for n, o, k, s, d in axes]
    before = list(found.padding)
    if found.out_size != tuple(out_size) and not transposed:
        before = [max(m, 0) // 2 for m in missing]
    after = [m - b for m, b in zip(missing, before, strict=True)]
    return F.pad(found.maps, (before[1], after[1], before[0], after[0]))


def window_of(module: nn.Module) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and dilation of a layer as a two-dimensional convolution."""
    if operation_of(module) == "linear":
        return (1, 1), (1, 1), (1, 1)
    assert isinstance(module, nn.modules.conv._ConvNd)
    stride = (1,) * len(module.stride) if module.transposed else module.stride
    three = (module.kernel_size, stride, module.dilation)
    if len(module.kernel_size) == 1:
        return tuple(pair((*values, 1)) for values in three)  # type: ignore[return-value]
    return tuple(pair(values[-2:]) for values in three)  # type: ignore[return-value]


def output_maps(module: nn.Module, values: Tensor) -> Tensor:
    """A layer's output as (N, Cout, H, W); a sequence of tokens is a map of one column.

    A Conv3d puts its output depths, one after the other, into N.
    """
    operation = operation_of(module)
    if operation == "linear":
        return padded_maps(module, values, (0, 0))
    dims = int(operation[-2])
    if values.dim() == dims + 1:
        values = values.unsqueeze(0)
    if dims == 1:
        return values.unsqueeze(3)
    return values if dims == 2 else values.transpose(1, 2).flatten(0, 1)


def _blank(module: nn.modules.conv._ConvNd) -> Tensor:
    """A tensor of the weight's shape without any numbers."""
    channels = (module.out_channels, module.in_channels // module.groups)
    if module.transposed:
        channels = (module.in_channels, module.out_channels // module.groups)
    return torch.empty(*channels, *module.kernel_size, device="meta")


def _padded_by(module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """The input padded in the module's own mode."""
    pads = [n for pair in reversed(conv_padding(module)) for n in pair]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    batched = x if x.dim() == len(module.kernel_size) + 2 else x.unsqueeze(0)
    return F.pad(batched, pads, mode=mode)


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


def _padding(padding: Any, reach: list[int]) -> tuple[list[int], list[int]]:
    if padding == "valid":
        return [0] * len(reach), [0] * len(reach)
    if padding == "same":
        return [n // 2 for n in reach], [n - n // 2 for n in reach]
    each = list(_each(padding, len(reach)))
    return each, each


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values
