"""A whole network computed on crossbars: the proof that a plan still computes the network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from crosspruner.errors import PlanError
from crosspruner.hardware.execute import execute_layer
from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.plan import Plan

Execute = Callable[[LayerPlan, Tensor, Tensor, LayerGeometry], Tensor]
"""(layer, x (batch, Cin, height, width), weight (Cout, Cin / G, kh, kw), sizes) -> output."""


def simulate(plan: Plan, model: nn.Module, x: Tensor, execute: Execute | None = None) -> Any:
    """Runs the model with every planned layer executed crossbar by crossbar.

    The convolutions and matrix products of the planned layers are replaced while the model runs,
    with the weights, biases and padding that its modules pass to them; everything else (activation,
    normalisation, pooling, sums) is computed as usual. Pruned blocks or columns are not in the plan
    and so are not computed, whatever the model's weights hold there.

    Args:
        plan: made for this model; dense or pruned.
        model: it runs in evaluation mode, and is left as it was.
        x: (batch, *input_shape), of the model's dtype and device. float64 shows that the plan is
            exact.
        execute: how one layer is computed; None = exactly, as numbers of the model's dtype. See
            `IntegerArithmetic` for cells and converters of limited precision.

    Returns:
        What the model returns.

    Raises:
        PlanError: the plan is of another model, or x is larger than what it was made for.
    """
    modules = dict(model.named_modules())
    names = {layer.name: layer for layer in plan.layers}
    names |= {name: names[first] for name, first in plan.shared.items()}
    if missing := [name for name in names if name not in modules]:
        raise PlanError(
            f"the plan has layers that the model has not ({', '.join(missing[:5])}): "
            "give the model that the plan was made for."
        )
    with _OnCrossbars(execute or _exactly) as running, _watch(modules, names, running):
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                return model(x)
        finally:
            for module, mode in modes.items():
                module.training = mode


def _exactly(layer: LayerPlan, x: Tensor, weight: Tensor, geometry: LayerGeometry) -> Tensor:
    return execute_layer(layer, x, weight, geometry=geometry)


class _OnCrossbars(TorchFunctionMode):
    """Takes over the convolution or product of the layer that is running."""

    def __init__(self, execute: Execute) -> None:
        super().__init__()
        self.execute = execute
        self.running: list[LayerPlan] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.running:
            layer = self.running[-1]
            if func is F.linear and layer.kind == "linear":
                return self._linear(layer, *args, **kwargs)
            if func is F.conv2d and layer.kind == "conv":
                return self._conv(layer, *args, **kwargs)
        return func(*args, **kwargs)

    def _linear(
        self, layer: LayerPlan, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        _check_weight(layer, weight[..., None, None])
        vectors = input.reshape(-1, input.shape[-1], 1, 1)
        y = self.execute(layer, vectors, weight[..., None, None], layer.geometry)
        y = y.reshape(*input.shape[:-1], -1)
        return y if bias is None else y + bias

    def _conv(
        self,
        layer: LayerPlan,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        _check_weight(layer, weight)
        x = input if input.dim() == 4 else input[None]
        x, geometry = _called(layer.geometry, x, _two(stride), padding, _two(dilation))
        y = self.execute(layer, x, weight, geometry)
        y = y if bias is None else y + bias[:, None, None]
        return y if input.dim() == 4 else y[0]


def _called(
    planned: LayerGeometry,
    x: Tensor,
    stride: tuple[int, int],
    padding: Any,
    dilation: tuple[int, int],
) -> tuple[Tensor, LayerGeometry]:
    """The sizes of one call, and its input without zeros that were padded beforehand."""
    reach = [d * (k - 1) for d, k in zip(dilation, planned.kernel, strict=True)]
    if padding == "same":
        before, whole = [n // 2 for n in reach], reach
    else:
        before = [0, 0] if padding == "valid" else list(_two(padding))
        whole = [2 * n for n in before]
    size = [x.shape[2], x.shape[3]]
    out = [(n + p - r - 1) // s + 1 for n, p, r, s in zip(size, whole, reach, stride, strict=True)]
    # A module that pads its input by itself hands over more than the plan counts as the input.
    extra = [p - b for p, b in zip(planned.padding, before, strict=True)]
    bare = x[
        :, :, extra[0] : extra[0] + planned.in_size[0], extra[1] : extra[1] + planned.in_size[1]
    ]
    if tuple(out) == planned.out_size and min(extra) >= 0 and bare.shape != x.shape:
        rest = (x.shape[3] - bare.shape[3] - extra[1], x.shape[2] - bare.shape[2] - extra[0])
        if torch.equal(F.pad(bare, (extra[1], rest[0], extra[0], rest[1])), x):
            return bare, planned
    geometry = replace(
        planned,
        stride=stride,
        padding=(before[0], before[1]),
        dilation=dilation,
        in_size=(size[0], size[1]),
        out_size=(out[0], out[1]),
    )
    return x, geometry


def _check_weight(layer: LayerPlan, weight: Tensor) -> None:
    geometry = layer.geometry
    expected = (geometry.out_channels, geometry.group_inputs, *geometry.kernel)
    if tuple(weight.shape) != expected:
        raise PlanError(
            f"{layer.name}: the model's weight is {tuple(weight.shape)}, the plan's {expected}: "
            "give the model that the plan was made for."
        )


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


@contextmanager
def _watch(
    modules: dict[str, nn.Module], layers: dict[str, LayerPlan], running: _OnCrossbars
) -> Iterator[None]:
    """Keeps `running.running` at the planned layer whose forward is under way."""
    hooks = []
    for name, layer in layers.items():
        module = modules[name]
        hooks.append(
            module.register_forward_pre_hook(lambda *_, at=layer: running.running.append(at))
        )
        hooks.append(
            module.register_forward_hook(
                lambda *_: running.running.pop() and None, always_call=True
            )
        )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
