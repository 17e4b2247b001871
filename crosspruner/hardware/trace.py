"""Finds the layers of a model that go on crossbars, and the sizes they run at.

The model is run once, on shapes alone (meta tensors: no arithmetic, no memory). Models that cannot
run so are run once for real, on one blank image, in evaluation mode.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from crosspruner.errors import ModelError
from crosspruner.hardware.mapping import LayerGeometry

# Modules whose parameters scale or shift channels: digital circuits beside the crossbars do that.
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True)
class Trace:
    """What one forward pass tells about a model."""

    geometries: list[LayerGeometry]
    """Conv2d and Linear layers in the order of their first use, shared weights once."""
    shared: dict[str, str]
    """Layers that use the weight of another one: {name: the layer that is counted}."""
    not_mapped: dict[str, str]
    """Weight-bearing modules that are left out: {name: kind}."""


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Runs the model on one blank image and notes each layer's shapes.

    Weights are neither copied nor changed; mode, device and random state are left as they were.

    Args:
        model: any module whose forward takes one tensor.
        input_shape: shape of one image, without the batch: (channels, height, width).

    Returns:
        The trace. A module called several times per image keeps its largest call, and `calls`
        counts them all. Two modules that share a weight are one layer, under the first name.

    Raises:
        ModelError: the forward pass fails, or it meets no Conv2d and no Linear.
    """
    names = {module: name for name, module in model.named_modules() if _is_layer(module)}
    found: dict[str, LayerGeometry] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        name = names[module]
        geometry = _geometry(name, module, args[0] if args else kwargs["input"], output)
        known = found.get(name)
        found[name] = geometry if known is None else _merge(known, geometry)

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in names]
    try:
        with _evaluation(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            _forward(model, input_shape, found)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ModelError(
            f"{type(model).__name__} runs no Conv2d and no Linear layer: there is nothing to put "
            "on crossbars."
        )
    return _without_shared(model, names, found)


def _forward(
    model: nn.Module, input_shape: tuple[int, ...], found: dict[str, LayerGeometry]
) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    first = next((t for t in tensors.values() if t.is_floating_point()), torch.empty(0))
    blank = torch.zeros((1, *input_shape), dtype=first.dtype, device="meta")
    try:
        shapes = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
        with _NormsKeepShape():
            functional_call(model, shapes, (blank,))
        return
    except Exception:  # any code may stand in a forward: values read back, custom kernels
        found.clear()
    try:
        model(torch.zeros_like(blank, device=first.device))
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot run on an image of shape {tuple(input_shape)}: "
            f"{type(error).__name__}: {error}. Give the input_shape that the model expects."
        ) from error


class _NormsKeepShape(TorchFunctionMode):
    """Skips normalisations, whose shape rules are nine tenths of the time on meta tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (nn.functional.batch_norm, nn.functional.layer_norm, nn.functional.group_norm):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _geometry(name: str, module: nn.Module, x: Tensor, y: Tensor) -> LayerGeometry:
    if isinstance(module, nn.Linear):
        calls = x.numel() // max(module.in_features, 1)
        return LayerGeometry(name, "linear", module.in_features, module.out_features, calls=calls)
    assert isinstance(module, nn.Conv2d)
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    dilation, in_size, out_size = _pair(module.dilation), _pair(x.shape[-2:]), _pair(y.shape[-2:])
    (top, bottom), (left, right) = conv_padding(module)
    padding = (top, left)
    whole = (in_size[0] + top + bottom, in_size[1] + left + right)
    span = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    plain = tuple((n - k) // s + 1 for n, k, s in zip(whole, span, stride, strict=True))
    if plain != out_size:
        # A subclass that pads in its forward (TensorFlow's SAME): half of what is missing, rounded
        # down, goes first.
        padding = _pair(
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


def conv_padding(module: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding of a convolution as ((top, bottom), (left, right)).

    "same" puts the odd one of an even kernel's padding at the end, as PyTorch does.
    """
    if module.padding == "valid":
        return (0, 0), (0, 0)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in totals)
        return (top, bottom), (left, right)
    high, wide = _pair(module.padding)
    return (high, high), (wide, wide)


def _pair(values: Any) -> tuple[int, int]:
    high, wide = values
    return int(high), int(wide)


def _merge(a: LayerGeometry, b: LayerGeometry) -> LayerGeometry:
    """One layer for two calls: the larger one's sizes, both counted."""
    larger = max(a, b, key=lambda g: g.out_size[0] * g.out_size[1])
    return replace(larger, calls=a.calls + b.calls)


def _without_shared(
    model: nn.Module, names: dict[nn.Module, str], found: dict[str, LayerGeometry]
) -> Trace:
    weights = {name: module.weight for module, name in names.items()}
    owner: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name in (name for name in names.values() if name in found):
        first = owner.setdefault(id(weights[name]), name)
        if first != name:
            shared[name] = first
    merged = dict(found)
    for name, first in shared.items():
        merged[first] = _merge(merged[first], replace(merged.pop(name), name=first))
    not_mapped = {}
    for name, module in model.named_modules():
        if name in found or isinstance(module, _NORMS):
            continue
        if any(sum(n > 1 for n in p.shape) > 1 for p in module.parameters(recurse=False)):
            kind = type(module).__name__
            not_mapped[name] = f"{kind}, never called" if _is_layer(module) else kind
    return Trace(list(merged.values()), shared, not_mapped)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode restored after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
