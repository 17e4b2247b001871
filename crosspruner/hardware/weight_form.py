"""How a layer comes by its weight: a plain parameter, or computed anew in each pass.

The crossbars hold the weight that is computed. Pruning has to put back what gives it: exact zeros
there must be exact zeros of the parameters, and the vanilla network must compute them again.

* plain: the parameter. Pruned.
* weight_norm: g v / |v| (torch's weight norms). Pruned: v = the new weight, g = its norm.
* standardised: (w - mean) / std of each output, times a gain (timm's StdConv2d, ScaledStdConv2d).
  Pruned: kept weights of mean zero, the gain takes up their norm; without a gain the norm is fixed.
* computed: any other way. Never pruned; counted, simulated, and named in a warning.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from crosspruner.errors import ModelError
from crosspruner.hardware.layer_modules import LAYERS, operation_of
from crosspruner.hardware.matrix import OPERATIONS, from_matrix, to_matrix

# By name: the library need not be there. Each standardises in its forward pass.
_STANDARDISED = {"StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"}


def weight_form(module: nn.Module) -> str:
    """The form of a layer whose weight is not simply its parameter, as far as known.

    Returns:
        weight_norm, standardised or computed.
    """
    if _old_norm(module) is not None or _new_norm(module) is not None:
        return "weight_norm"
    names = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("timm.")}
    return "standardised" if names & _STANDARDISED else "computed"


def why_computed(module: nn.Module | None) -> str:
    """Why pruning cannot touch a weight of the form `computed`, and what would let it.

    Args:
        module: the layer; None or another module for a parameter that a function takes.
    """
    if not isinstance(module, LAYERS):
        return (
            "the weight is used directly in forward, not through a module, so it is counted but "
            "never pruned. Put it into a layer such as nn.Conv2d or nn.Linear to prune it."
        )
    if prune.is_pruned(module):
        return (
            "torch.nn.utils.prune multiplies the weight by its mask in each pass, so these layers "
            "are counted but never pruned. Call torch.nn.utils.prune.remove(layer, 'weight') to "
            "prune them: the zeros stay."
        )
    return (
        "the weight is computed anew in each pass, in a way that is not known, so these layers are "
        "counted but never pruned. Remove the parametrization to prune them."
    )


def form_of(module: nn.Module) -> str:
    """As `weight_form`, and plain where nothing known stands between parameter and weight."""
    if module._parameters.get("weight") is None:
        return weight_form(module)
    return "standardised" if weight_form(module) == "standardised" else "plain"


@torch.no_grad()
def read_matrix(module: nn.Module) -> Tensor:
    """The weight that a layer computes with, as (Cout, Cin / G, kh, kw).

    Args:
        module: one of `layer_modules.LAYERS`.
    """
    form = form_of(module)
    if form == "plain":
        weight = module.weight
    elif (old := _old_norm(module)) is not None:
        weight = old.compute_weight(module)
    else:
        weight = _Caught.weight_of(module)
    assert isinstance(weight, Tensor)
    return to_matrix(operation_of(module), weight.detach(), _groups(module))


@torch.no_grad()
def write_matrix(module: nn.Module, matrix: Tensor) -> None:
    """Sets what a layer's weight comes from so that it computes with this matrix.

    Args:
        module: one of `layer_modules.LAYERS`; its parameters are changed in place.
        matrix: (Cout, Cin / G, kh, kw); exact zeros become exact zeros of the parameter. For a
            standardised layer, as `attainable` gives it.

    Raises:
        ModelError: the weight is computed in a way that is not known.
    """
    form, shape = form_of(module), stored_weight(module).shape
    weight = from_matrix(operation_of(module), matrix, tuple(shape), _groups(module))
    if form == "plain":
        stored_weight(module).copy_(weight)
    elif form == "weight_norm":
        _write_norm(module, weight)
    elif form == "standardised":
        stored_weight(module).copy_(weight)
        gain = getattr(module, "gain", None)
        if isinstance(gain, Tensor):
            variance = weight.flatten(1).var(1, correction=0)
            whole = (variance + module.eps).sqrt() / module.scale  # type: ignore[operator]
            gain.copy_(torch.where(variance > 0, whole, 0.0).view_as(gain))
    else:
        raise ModelError(
            f"{type(module).__name__} computes its weight in a way that is not known: remove the "
            "parametrization first, or exclude the layer."
        )


def attainable(module: nn.Module, matrix: Tensor) -> Tensor:
    """The nearest matrix with the same zeros that the layer can compute with.

    Args:
        module: one of `layer_modules.LAYERS`.
        matrix: (Cout, Cin / G, kh, kw).

    Returns:
        The matrix; for standardised layers its kept weights have mean zero, and without a gain the
        fixed norm too.
    """
    if form_of(module) != "standardised":
        return matrix
    rows = centred(matrix.double(), matrix != 0)
    if not isinstance(getattr(module, "gain", None), Tensor):
        variance = rows.square().mean((1, 2, 3), keepdim=True)
        rows = rows / (variance + module.eps).sqrt()  # type: ignore[operator]
    return rows.to(matrix.dtype)


def centred(weight: Tensor, kept: Tensor) -> Tensor:
    """The weight with the mean of each output's kept entries taken off them, zero elsewhere.

    Args:
        weight: (Cout, ...).
        kept: bool, broadcasts against it.
    """
    held = kept.expand_as(weight).flatten(1)
    rows = torch.where(held, weight.flatten(1).double(), 0.0)
    mean = rows.sum(1, keepdim=True) / held.sum(1, keepdim=True).clamp(min=1)
    return torch.where(held, rows - mean, 0.0).view_as(weight).to(weight.dtype)


def _write_norm(module: nn.Module, weight: Tensor) -> None:
    """Sets g and v of weight norm; an output of zeros keeps its direction and gets g = 0."""
    old = _old_norm(module)
    if old is not None:
        dim = old.dim
        g, v = getattr(module, f"{old.name}_g"), getattr(module, f"{old.name}_v")
    else:
        known: Any = module.parametrizations
        dim = _new_norm(module).dim  # type: ignore[union-attr]
        g, v = known.weight.original0, known.weight.original1
    norm = torch.norm_except_dim(weight, 2, -1 if dim is None else dim)
    g.copy_(norm)
    v.copy_(torch.where(norm > 0, weight, v))
    if old is not None:
        setattr(module, old.name, old.compute_weight(module).detach())


def stored_weight(module: nn.Module) -> Tensor:
    """The parameter that has the weight's shape: its zeros are zeros of the weight."""
    if _old_norm(module) is not None:
        return module.weight_v  # type: ignore[return-value]
    if _new_norm(module) is not None:
        return module.parametrizations.weight.original1  # type: ignore[union-attr, return-value]
    return module.weight  # type: ignore[return-value]


def _old_norm(module: nn.Module) -> WeightNorm | None:
    hooks = module._forward_pre_hooks.values()
    found = (h for h in hooks if isinstance(h, WeightNorm) and h.name == "weight")
    return next(found, None)


def _new_norm(module: nn.Module) -> _WeightNorm | None:
    if not parametrize.is_parametrized(module, "weight"):
        return None
    steps = list(module.parametrizations.weight)  # type: ignore[union-attr, arg-type]
    return steps[0] if len(steps) == 1 and isinstance(steps[0], _WeightNorm) else None


def _groups(module: nn.Module) -> int:
    groups = getattr(module, "groups", 1)
    return groups if isinstance(groups, int) else 1


class _Caught(TorchFunctionMode):
    """Notes the weight that a layer hands to its convolution or product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OPERATIONS:
            self.weight = args[1] if len(args) > 1 else kwargs["weight"]
        return func(*args, **kwargs)

    @classmethod
    def weight_of(cls, module: nn.Module) -> Tensor:
        if isinstance(module, nn.Linear):
            shape: tuple[int, ...] = (1, module.in_features)
        else:
            assert isinstance(module, nn.modules.conv._ConvNd)
            reach = zip(module.dilation, module.kernel_size, strict=True)
            shape = (1, module.in_channels, *(d * (k - 1) + 1 for d, k in reach))
        like = next(module.parameters())
        with cls() as caught:
            module.forward(torch.zeros(shape, dtype=like.dtype, device=like.device))
        if caught.weight is None:
            raise ModelError(
                f"{type(module).__name__} computes no convolution and no product of torch's: "
                "exclude the layer."
            )
        return caught.weight
