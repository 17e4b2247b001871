"""A whole network computed on crossbars: the proof that a plan still computes the network."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.errors import ConfigError, PlanError
from crosspruner.hardware.attention import has_layer, layer_name
from crosspruner.hardware.calls import Call, WeightCalls, owner_of
from crosspruner.hardware.evaluation_mode import evaluation
from crosspruner.hardware.execute import execute_layer
from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.matrix import Unrolled
from crosspruner.hardware.plan import Plan

Execute = Callable[[LayerPlan, Tensor, Tensor, LayerGeometry], Tensor]
"""(layer, x (batch, Cin, height, width), weight (Cout, Cin / G, kh, kw), sizes) -> output."""


def simulate(plan: Plan, model: nn.Module, x: Tensor, execute: Execute | None = None) -> Any:
    """Runs the model with every planned layer executed crossbar by crossbar.

    The convolutions and matrix products of the planned layers are replaced while the model runs,
    whether their modules are called or a function uses their weights, with the weights, biases and
    padding that are passed to them; everything else (activation, normalisation, pooling, sums) is
    computed as usual. Pruned blocks or columns are not in the plan
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
        ConfigError: x is no tensor, has no batch dimension, or other channels than the plan.
        PlanError: the plan is of another model, or x is larger than what it was made for.
    """
    check_batched(x, plan)
    names = {layer.name: layer for layer in plan.layers}
    names |= {name: names[first] for name, first in plan.shared.items()}
    if missing := [name for name in names if not has_layer(model, name)]:
        raise PlanError(
            f"the plan has layers that the model has not ({', '.join(missing[:5])}): "
            "give the model that the plan was made for."
        )
    crossbars = _OnCrossbars(model, names, execute or _exactly)
    with crossbars.watching(crossbars.modules), evaluation(model), torch.no_grad():
        return model(x)


def check_batched(x: Any, plan: Plan) -> None:
    """Raise ConfigError unless x is a batch for this plan by its axes and, of images, channels."""
    shape = plan.input_shape
    # Smaller images are fine; other channels would meet the wrong weights.
    batched = isinstance(x, Tensor) and x.dim() == 1 + len(shape)
    if batched and (len(shape) != 3 or x.shape[1] == shape[0]):
        return
    found = f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
    wanted = ", ".join(map(str, ("B", *shape)))
    hint = "; of a single image give image[None], of a Dataset a DataLoader"
    hint = hint if isinstance(x, Tensor) else ""
    raise ConfigError(f"the batch {found}, where the plan takes tensors ({wanted}){hint}.")


def _exactly(layer: LayerPlan, x: Tensor, weight: Tensor, geometry: LayerGeometry) -> Tensor:
    return execute_layer(layer, x, weight, geometry=geometry)


class _OnCrossbars(WeightCalls):
    """Takes over the convolutions and products of the planned layers."""

    def __init__(self, model: nn.Module, layers: dict[str, LayerPlan], execute: Execute) -> None:
        super().__init__(self._compute)
        self.execute = execute
        self.layers = layers
        modules = dict(model.named_modules())
        self.modules = {modules[name]: name for name in layers if name in modules}
        self.owners = {id(p): layer_name(name) for name, p in model.named_parameters()}

    def _compute(self, call: Call, running: nn.Module | None) -> Tensor:
        name = owner_of(call, running, self.modules, self.owners)
        if name not in self.layers:
            return call.compute()
        layer = self.layers[name]
        unrolled = call.unrolled()
        _check_weight(layer, unrolled.matrix)
        if call.operation == "linear":
            y = self._linear(layer, unrolled)
        else:
            x, geometry = _called(layer.geometry, unrolled)
            y = self.execute(layer, x, unrolled.matrix, geometry)
        if call.bias is not None:
            y = y + call.bias[:, None, None]
        # As torch lays it out: networks take views of it.
        return call.wanted(unrolled.restore(y).contiguous())

    def _linear(self, layer: LayerPlan, unrolled: Unrolled) -> Tensor:
        """Positions of a sequence in rows of as many as the plan handles at once."""
        vectors, at_once = unrolled.maps, layer.geometry.out_size[1]
        spare = -len(vectors) % at_once
        rows = F.pad(vectors.flatten(1), (0, 0, 0, spare)).unflatten(0, (-1, at_once))
        y = self.execute(layer, rows.mT.unsqueeze(2), unrolled.matrix, layer.geometry)
        return y.squeeze(2).mT.flatten(0, 1)[: len(vectors), :, None, None]


def _called(planned: LayerGeometry, call: Unrolled) -> tuple[Tensor, LayerGeometry]:
    """The input of one call without zeros that were padded beforehand, and its sizes."""
    x, before = call.maps, call.padding
    # A module that pads its input by itself hands over more than the plan counts as the input.
    extra = [p - b for p, b in zip(planned.padding, before, strict=True)]
    if call.out_size == planned.out_size and min(extra) >= 0:
        high, wide = planned.in_size
        bare = x[:, :, extra[0] : extra[0] + high, extra[1] : extra[1] + wide]
        rest = (x.shape[3] - bare.shape[3] - extra[1], x.shape[2] - bare.shape[2] - extra[0])
        if bare.shape != x.shape and torch.equal(
            F.pad(bare, (extra[1], rest[0], extra[0], rest[1])), x
        ):
            return bare, planned
    geometry = replace(
        planned,
        stride=call.stride,
        padding=before,
        dilation=call.dilation,
        in_size=(x.shape[2], x.shape[3]),
        out_size=call.out_size,
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
