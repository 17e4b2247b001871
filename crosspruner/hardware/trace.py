"""Finds the layers of a model that go on crossbars, and the sizes they run at.

The model is run once, on shapes alone (meta tensors: no arithmetic, no memory). Models that cannot
run so are run once for real, on one blank image, in evaluation mode.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from crosspruner.errors import ModelError
from crosspruner.hardware import call_geometry
from crosspruner.hardware.attention import layer_name
from crosspruner.hardware.calls import Call, WeightCalls, owner_of
from crosspruner.hardware.evaluation_mode import evaluation
from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.layer_modules import LAYERS
from crosspruner.hardware.weight_form import weight_form

# Modules whose parameters scale or shift channels: digital circuits beside the crossbars do that.
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True)
class Trace:
    """What one forward pass tells about a model."""

    geometries: list[LayerGeometry]
    """Layers with a weight matrix in the order of their first use, shared weights once."""
    shared: dict[str, str]
    """Layers that use the weight of another one: {name: the layer that is counted}."""
    not_mapped: dict[str, str]
    """What has weights and is left out: {name: kind}. Modules (norms, embeddings, layers that are
    never called), and single parameters of modules that are none of those."""
    forms: dict[str, str] = field(default_factory=dict)
    """How layers come by their weight where it is not plainly a parameter, see `weight_form`."""
    several_inputs: frozenset[str] = frozenset()
    """Fused projections whose matrices read different inputs: attention of one sequence to
    another."""


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Runs the model on one blank image and notes each layer's shapes.

    A layer is found by its weight, whether its module is called or a function uses the weight
    (shifted windows, `nn.MultiheadAttention`). Weights are neither copied nor changed; mode, device
    and random state are left as they were.

    Args:
        model: any module whose forward takes one tensor.
        input_shape: shape of one image, without the batch: (channels, height, width).

    Returns:
        The trace. A module called several times per image keeps its largest call, and `calls`
        counts them all. Two modules that share a weight are one layer, under the first name.

    Raises:
        ModelError: the forward pass fails, or it meets no layer.
    """
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, LAYERS)
    }
    tracer = _Tracer(names)
    with (
        evaluation(model),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        tracer.noting_modules(),
    ):
        _forward(model, input_shape, tracer)
    if not tracer.found:
        raise ModelError(
            f"{type(model).__name__} runs no Conv2d and no Linear layer, nor any other with a "
            "weight matrix: there is nothing to put on crossbars."
        )
    return _without_shared(model, names, tracer)


class _Tracer(WeightCalls):
    """Notes the geometry of every call."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        super().__init__(self._note)
        self.names = names
        self.owners: dict[int, str] = {}
        """id of a weight -> its layer."""
        self.found: dict[str, LayerGeometry] = {}
        self.forms: dict[str, str] = {}
        self.several_inputs: set[str] = set()
        self._computed: set[nn.Module] = set()

    def _note(self, call: Call, running: nn.Module | None) -> Tensor:
        name = owner_of(call, running, self.names, self.owners)
        y = call.compute()
        if running is not None and self.names[running] == name:
            self._note_module(running, call)
        elif name is not None:
            self._add(call_geometry.of_call(name, call))
            if call.part is not None:
                self.several_inputs.add(name)
            if call.operation != "linear" and name not in self.names.values():
                self.forms[name] = "computed"  # a bare parameter, not a layer's weight
        return y

    def _note_module(self, module: nn.Module, call: Call) -> None:
        name = self.names[module]
        if module._parameters.get("weight") is not call.weight:
            self.forms[name] = weight_form(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            self._computed.add(module)  # the module's own input tells more, see _note_whole
        else:
            self._add(call_geometry.of_call(name, call))

    def _note_whole(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if module not in self._computed:
            return
        self._computed.discard(module)
        x = args[0] if args else kwargs["input"]
        self._add(call_geometry.of_module(self.names[module], module, x, output))

    def _add(self, geometry: LayerGeometry) -> None:
        known = self.found.get(geometry.name)
        if known is not None and geometry.name in self.several_inputs:
            # Query, key and value of one call work side by side.
            calls = max(known.calls, geometry.calls)
            self.found[geometry.name] = replace(known, calls=calls)
            return
        if known is not None:
            geometry = call_geometry.merged(known, geometry)
        self.found[geometry.name] = geometry

    @contextmanager
    def noting_modules(self) -> Iterator[None]:
        """Watches, inside, the modules; `with self` watches the functions."""
        hooks = [
            module.register_forward_hook(self._note_whole, with_kwargs=True)
            for module in self.names
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def other(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Skips normalisations, whose shape rules are nine tenths of the time on meta tensors."""
        norms = (nn.functional.batch_norm, nn.functional.layer_norm, nn.functional.group_norm)
        if func in norms and args and args[0].is_meta:
            return torch.empty_like(args[0])
        return func(*args, **kwargs)


def _forward(model: nn.Module, input_shape: tuple[int, ...], tracer: _Tracer) -> None:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    tensors = parameters | buffers
    first = next((t for t in tensors.values() if t.is_floating_point()), torch.empty(0))
    blank = torch.zeros((1, *input_shape), dtype=first.dtype, device="meta")
    try:
        shapes = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
        tracer.owners = {id(shapes[name]): layer_name(name) for name in parameters}
        with tracer.watching(tracer.names):
            functional_call(model, shapes, (blank,))
        return
    except Exception:  # any code may stand in a forward: values read back, custom kernels
        tracer.found.clear()
        tracer.forms.clear()
        tracer.running.clear()
        tracer.several_inputs.clear()
    try:
        tracer.owners = {id(tensor): layer_name(name) for name, tensor in parameters.items()}
        with tracer.watching(tracer.names):
            model(torch.zeros_like(blank, device=first.device))
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot run on an image of shape {tuple(input_shape)}: "
            f"{type(error).__name__}: {error}. Give the input_shape that the model expects, "
            "without the batch dimension."
        ) from error


def _without_shared(model: nn.Module, names: dict[nn.Module, str], tracer: _Tracer) -> Trace:
    found, forms = dict(tracer.found), dict(tracer.forms)
    # A plain weight is known by its tensor. A computed one is shared if what it comes from is.
    sources = {
        name: tuple(sorted(id(p) for p in module.parameters() if p.dim() > 1))
        for module, name in names.items()
    }
    owner: dict[tuple[int, ...], str] = {}
    shared: dict[str, str] = {}
    for name in list(found):
        source = sources.get(name, ())
        if not source:
            continue
        first = owner.setdefault(source, name)
        if first != name:
            shared[name] = first
    for name, first in shared.items():
        found[first] = call_geometry.merged(found[first], replace(found.pop(name), name=first))
    return Trace(
        list(found.values()),
        shared,
        _not_mapped(model, {*found, *shared}),
        {name: form for name, form in forms.items() if name not in shared},
        frozenset(tracer.several_inputs),
    )


def _not_mapped(model: nn.Module, mapped: set[str]) -> dict[str, str]:
    """Modules with weights that are no layer, and single parameters of any others."""
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        own = {key: p for key, p in module._parameters.items() if p is not None}
        if name in mapped or not own:
            continue
        if isinstance(module, NORMS) or kind.lower().endswith("norm"):
            left[name] = kind
        elif isinstance(module, (*LAYERS, nn.Embedding, nn.EmbeddingBag)):
            left[name] = f"{kind}, never called" if isinstance(module, LAYERS) else kind
        else:
            for key, parameter in own.items():
                full = f"{name}.{key}" if name else key
                if layer_name(full) not in mapped and sum(n > 1 for n in parameter.shape) > 1:
                    left[full] = f"parameter of {kind}"
    return left
