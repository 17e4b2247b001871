"""The modules that go on crossbars: their matrix, the maps they read and those they give.

Maps and matrix are those of the two-dimensional convolution that `matrix` makes of each kind.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.hardware.geometry import pair
from crosspruner.hardware.matrix import padding_before_and_after, to_matrix, unroll

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
    return tuple(zip(*padding_before_and_after(module.padding, reach), strict=True))


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
    maps, padding = maps_and_padding(module, x, out_size)
    return F.pad(maps, padding)


def maps_and_padding(
    module: nn.Module, x: Tensor, out_size: tuple[int, int]
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The maps (N, Cin, H, W) of a layer's input, see `padded_maps`, and the zeros that it puts
    left, right, above and below. What it pads with other values is part of the maps."""
    operation = operation_of(module)
    if operation == "linear":
        if x.dim() == 1:
            x = x.unsqueeze(0)
        maps = x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2).unsqueeze(3)
        return maps, (0, 0, 0, 0)
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
    return found.maps, (before[1], after[1], before[0], after[0])


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


def pixels_read(module: nn.Module, positions: Tensor, out_width: int, in_width: int) -> Tensor:
    """Which pixels of its padded, flattened input maps a layer reads at some output positions.

    Args:
        module: one of LAYERS.
        positions: (n,) int64, places in the flattened output maps.
        out_width, in_width: of the output maps and of the padded input maps, in pixels.

    Returns:
        (kernel places, n) int64.
    """
    (high, wide), (sh, sw), (dh, dw) = window_of(module)
    down = positions // out_width * sh + torch.arange(high).view(-1, 1, 1) * dh
    across = positions % out_width * sw + torch.arange(wide).view(-1, 1) * dw
    return (down * in_width + across).flatten(0, 1)


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
