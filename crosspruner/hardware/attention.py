"""Attention projections: fused ones are several matrices, and heads are runs of their outputs."""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.hardware.geometry import LayerGeometry

Linear = Callable[[Tensor, Tensor, Tensor | None, int | None], Tensor]
"""(x, weight, bias, part) -> output; part: which third of the outputs is wanted, None = all."""

# Names that modules of torch, timm and torchvision give their projections.
_FUSED = {"qkv": 3, "to_qkv": 3, "kv": 2, "to_kv": 2, "in_proj": 3}
_SINGLE = {
    *("q", "k", "v", "q_proj", "k_proj", "v_proj", "to_q", "to_k", "to_v"),
    *("query", "key", "value"),
}
_HEADS = ("num_heads", "n_heads", "heads", "num_attention_heads")

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def sections_of(model: nn.Module, geometry: LayerGeometry, heads: str) -> int:
    """Equal runs of a layer's outputs that an output group must not cross.

    A fused projection of as many outputs as its matrices have is those matrices side by side. One
    that holds query, key and value of each head together (timm's `head_first`, EfficientFormer,
    LeViT) is one matrix, or one run per head.

    Args:
        model: the network.
        geometry: one of its layers.
        heads: "respected" or "ignored".

    Returns:
        1 for anything but the query, key and value projections of attention.
    """
    parent_name, _, own = geometry.name.rpartition(".")
    parent = _submodule(model, parent_name)
    count = next((n for key in _HEADS if isinstance(n := getattr(parent, key, None), int)), None)
    if count is None or geometry.conv_groups != 1 or geometry.kernel != (1, 1):
        return 1
    whole, per_head = geometry.out_channels, count if heads == "respected" else 1
    matrices = _FUSED.get(own, 1 if own in _SINGLE else None)
    if matrices is None:
        return 1
    together = bool(getattr(parent, "head_first", False)) or (
        matrices > 1 and whole != matrices * geometry.in_channels
    )
    sections = per_head if together else matrices * per_head
    return sections if whole % sections == 0 else 1


def layer_module(model: nn.Module, name: str) -> nn.Module:
    """The module of a planned layer.

    A weight that is no module's own (the input projections of `nn.MultiheadAttention`: `in_proj`,
    `q_proj`, `k_proj`, `v_proj`; a bare parameter) comes as a Linear of the same parameters.

    Raises:
        AttributeError: the model has no such layer.
    """
    found = _submodule(model, name)
    if found is not None:
        return found
    parent_name, _, own = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    weight = getattr(parent, f"{own}_weight", None)
    weight = getattr(parent, own) if weight is None else weight
    known = _ADAPTERS.setdefault(parent, {})
    if own not in known or known[own].weight is not weight:
        with torch.device("meta"):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = weight
        if own == "in_proj":
            linear.register_parameter("bias", parent.in_proj_bias)  # type: ignore[arg-type]
        known[own] = linear
    return known[own]


def has_layer(model: nn.Module, name: str) -> bool:
    """Whether `layer_module` finds it."""
    try:
        layer_module(model, name)
    except AttributeError:
        return False
    return True


_ADAPTERS: "WeakKeyDictionary[nn.Module, dict[str, nn.Linear]]" = WeakKeyDictionary()


def layer_name(parameter: str) -> str:
    """The layer of a weight: "a.b.weight" -> "a.b", "a.in_proj_weight" -> "a.in_proj"."""
    if parameter == "weight":
        return ""
    return parameter.removesuffix(".weight").removesuffix("_weight")


def attention_by_projections(linear: Linear, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`F.multi_head_attention_forward` with its four projections computed by `linear`.

    The rest of it (masks, extra keys, heads, weights that are returned) is torch's own, between
    projections that are identities: a product with the identity changes no number.

    Args:
        linear: computes the projections.
        args: of the function.
        kwargs: of the function.
    """
    call = _SIGNATURE.bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    q, k, v = given["query"], given["key"], given["value"]
    bias, width = given["in_proj_bias"], q.shape[-1]
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    if given["use_separate_proj_weight"]:
        weights = [given[f"{x}_proj_weight"] for x in "qkv"]
        projected = [
            linear(x, w, None, None) if b is None else linear(x, w, None, None) + b
            for x, w, b in zip((q, k, v), weights, biases, strict=True)
        ]
    elif q is k and k is v:
        projected = list(linear(q, given["in_proj_weight"], bias, None).chunk(3, -1))
    else:
        weight = given["in_proj_weight"]
        projected = [linear(x, weight, bias, part) for part, x in enumerate((q, k, v))]
    eye = torch.eye(width, dtype=projected[0].dtype, device=projected[0].device)
    out_weight, out_bias = given["out_proj_weight"], given["out_proj_bias"]
    given |= dict(zip(("query", "key", "value"), projected, strict=True))
    given |= {"in_proj_weight": eye.repeat(3, 1), "in_proj_bias": None}
    given |= {"out_proj_weight": eye, "out_proj_bias": None, "use_separate_proj_weight": False}
    mixed, attention = F.multi_head_attention_forward(*call.args, **call.kwargs)
    return linear(mixed, out_weight, out_bias, None), attention


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
