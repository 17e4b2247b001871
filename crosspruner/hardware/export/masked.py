"""The weights that a plan keeps, and the inputs that its layers see."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.plan import Plan
from crosspruner.hardware.simulate import simulate


@dataclass
class Seen:
    """What one layer met in a forward pass."""

    layer: LayerPlan
    weight: Tensor
    """(Cout, Cin / G, kh, kw), pruned."""
    padded: Tensor
    """(batch, Cin, height, width), its padding included; of its first call."""
    pooled: bool = False
    """Whether a pooling follows before the next layer."""
    calls: int = 0
    """Times it was called."""


def observe(plan: Plan, model: nn.Module, images: Tensor) -> list[Seen]:
    """Runs the pruned network once, with plain convolutions, and notes what each layer met.

    Args:
        plan: made for the model.
        model: left as it was.
        images: (batch, *input_shape).

    Returns:
        One entry per planned layer, in the order of their use.
    """
    seen: dict[str, Seen] = {}
    last: list[Seen] = []

    def execute(layer: LayerPlan, x: Tensor, weight: Tensor, geometry: LayerGeometry) -> Tensor:
        weight = weight * layer.kept.to(weight.device)[:, :, None, None]
        padded = _padded(x, geometry)
        met = seen.setdefault(layer.name, Seen(layer, weight, padded))
        met.calls += 1
        last[:] = [met]
        return F.conv2d(
            padded, weight, None, geometry.stride, 0, geometry.dilation, geometry.conv_groups
        )

    with _Pooling(last):
        simulate(plan, model, images, execute)
    return list(seen.values())


def _padded(x: Tensor, geometry: LayerGeometry) -> Tensor:
    """The input with exactly the zeros (or without the borders) that the outputs ask for."""
    after = [
        (o - 1) * s + d * (k - 1) + 1 - n - p
        for o, s, d, k, n, p in zip(
            geometry.out_size,
            geometry.stride,
            geometry.dilation,
            geometry.kernel,
            geometry.in_size,
            geometry.padding,
            strict=True,
        )
    ]
    top, left = geometry.padding
    return F.pad(x, (left, after[1], top, after[0]))


class _Pooling(TorchFunctionMode):
    """Marks the layer that ran last when feature maps are pooled."""

    def __init__(self, last: list[Seen]) -> None:
        super().__init__()
        self.last = last

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        y = func(*args, **(kwargs or {}))
        if self.last and "pool2d" in getattr(func, "__name__", "") and isinstance(y, Tensor):
            self.last[0].pooled |= y.shape[-1] < args[0].shape[-1]
        return y


def sample(plan: Plan, model: nn.Module) -> Tensor:
    """A blank image of the plan's shape, on the model's device and of its dtype."""
    first = next(model.parameters())
    return torch.zeros(1, *plan.input_shape, dtype=first.dtype, device=first.device)
