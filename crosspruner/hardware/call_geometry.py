"""The shapes of a layer, from the calls of it that a forward pass makes."""

from dataclasses import replace

from torch import Tensor, nn

from crosspruner.hardware.calls import Call
from crosspruner.hardware.geometry import LayerGeometry, pair
from crosspruner.hardware.layer_modules import conv_padding


def of_call(name: str, call: Call) -> LayerGeometry:
    """The shapes of a layer from a function of torch that takes its weight.

    Args:
        name: of the layer.
        call: with the function's own input and weight.
    """
    found = call.unrolled()
    out_channels, fan_in, kh, kw = found.matrix.shape
    return LayerGeometry(
        name=name,
        kind="linear" if call.operation == "linear" else "conv",
        in_channels=fan_in * found.groups,
        out_channels=out_channels,
        kernel=(kh, kw),
        stride=found.stride,
        padding=found.padding,
        dilation=found.dilation,
        conv_groups=found.groups,
        in_size=(int(found.maps.shape[2]), int(found.maps.shape[3])),
        out_size=found.out_size,
        calls=len(found.maps),
    )


def of_module(name: str, module: nn.Module, x: Tensor, y: Tensor) -> LayerGeometry:
    """The shapes of a Conv2d or a Linear from what it reads and gives.

    That tells more than the call in it, whose input may have been padded by the module itself.

    Args:
        name: of the layer.
        module: the layer.
        x: its input.
        y: its output.
    """
    if isinstance(module, nn.Linear):
        calls = x.numel() // max(module.in_features, 1)
        return LayerGeometry(name, "linear", module.in_features, module.out_features, calls=calls)
    assert isinstance(module, nn.Conv2d)
    kernel, stride = pair(module.kernel_size), pair(module.stride)
    dilation, in_size, out_size = pair(module.dilation), pair(x.shape[-2:]), pair(y.shape[-2:])
    (top, bottom), (left, right) = conv_padding(module)
    padding = (top, left)
    whole = (in_size[0] + top + bottom, in_size[1] + left + right)
    span = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    plain = tuple((n - k) // s + 1 for n, k, s in zip(whole, span, stride, strict=True))
    if plain != out_size:
        # A subclass that pads in its forward (TensorFlow's SAME): half of what is missing, rounded
        # down, goes first.
        padding = pair(
            max((o - 1) * s + k - n, 0) // 2
            for o, s, k, n in zip(out_size, stride, span, in_size, strict=True)
        )
    elif module.padding_mode != "zeros":
        in_size, padding = whole, (0, 0)
    return LayerGeometry(
        name=name,
        kind="conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        conv_groups=module.groups,
        in_size=in_size,
        out_size=out_size,
        calls=x[..., 0, 0].numel() // module.in_channels,
    )


def merged(a: LayerGeometry, b: LayerGeometry) -> LayerGeometry:
    """One layer for two calls: the larger one's sizes, both counted."""
    larger = max(a, b, key=lambda g: g.out_size[0] * g.out_size[1])
    return replace(larger, calls=a.calls + b.calls)
