"""Planning a model: which of its layers go on crossbars, how, and which pruning may touch."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from operator import index
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from crosspruner.errors import ConfigError
from crosspruner.hardware.attention import sections_of
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.mapping import choose_tiling, with_tokens
from crosspruner.hardware.mapping_spec import MappingSpec
from crosspruner.hardware.packing import checked_grain
from crosspruner.hardware.plan import Plan
from crosspruner.hardware.trace import Trace, trace
from crosspruner.hardware.weight_form import why_computed

# Python's own memory of warnings is by place, and `prune` plans from another one than the user.
_TOLD: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def plan_model(
    model: nn.Module,
    input_shape: Sequence[int] = (3, 32, 32),
    crossbar: Crossbar | str = "256x256",
    mapping: MappingSpec | str = "semifolded",
    grain: str = "crossbar",
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> Plan:
    """Plans every layer with a weight matrix onto crossbars, unpruned.

    Conv1d, 2d and 3d, ConvTranspose1d and 2d, Linear, the projections of `nn.MultiheadAttention`,
    and weights that functions use. What else has weights is named in `not_mapped`.

    Args:
        model: any module; it is not changed.
        input_shape: shape of one image, without the batch.
        crossbar: the array, or its size as text.
        mapping: folded, semifolded, unfolded, liang2018, or a `MappingSpec`.
        grain: what pruning will remove as a unit, crossbar or column.
        include: names or patterns (`features.*`) of the layers that may be pruned; None = all.
        exclude: names or patterns of those that may not; None = the first and the last layer,
            () = none. Excluded layers are counted all the same.

    Returns:
        The dense plan; `layer.prunable` says which layers pruning may touch.

    Raises:
        ConfigError: an unknown mapping or grain, a pattern that no layer matches, or an
            input_shape that is none.
        MappingError: a layer does not fit with the given kin and kout.
        ModelError: the model does not run on that input shape.

    Warns:
        UserWarning: names layers that are counted but cannot be pruned, see
            `weight_form.weight_form`; once for each model.
    """
    spec = MappingSpec.of(mapping)
    crossbar = spec.crossbar(Crossbar.parse(crossbar))
    grain = checked_grain(grain)
    shape = _shape(input_shape)
    traced = trace(model, shape)
    names = [geometry.name for geometry in traced.geometries]
    _known(spec.layers or {}, names, "mapping.layers")
    included = set(names) if include is None else matching(include, names, "include")
    excluded = {names[0], names[-1]} if exclude is None else matching(exclude, names, "exclude")
    _warn_of_computed(model, traced)
    layers = []
    for found in traced.geometries:
        form = traced.forms.get(found.name, "plain")
        allowed = form != "computed" and found.name not in traced.several_inputs
        sections = sections_of(model, found, spec.heads)
        geometry = with_tokens(replace(found, sections=sections), spec)
        tiling = choose_tiling(geometry, crossbar, spec)
        chosen = allowed and found.name in included - excluded
        layers.append(LayerPlan(geometry, crossbar, tiling, grain, chosen, weight_form=form))
    return Plan(
        *(tuple(layers), crossbar, spec, grain, shape),
        *(traced.shared, traced.not_mapped),
    )


def _warn_of_computed(model: nn.Module, traced: Trace) -> None:
    """Names, once for each model, the layers that are counted but that pruning cannot touch."""
    modules = dict(model.named_modules())
    reasons: dict[str, list[str]] = {}
    for name, form in traced.forms.items():
        if form == "computed":
            why = why_computed(modules.get(name))
            reasons.setdefault(why, []).append(name or "the model itself")
    messages = [f"{', '.join(names)}: {why}" for why, names in reasons.items()]
    if traced.several_inputs:
        messages.append(
            f"{', '.join(sorted(traced.several_inputs))}: query, key and value come from different "
            "sequences, so this projection is counted but never pruned."
        )
    told = _TOLD.setdefault(model, set())
    for message in messages:
        if message not in told:
            told.add(message)
            warnings.warn(message, stacklevel=3)


def matching(patterns: str | Iterable[str], names: list[str], key: str) -> set[str]:
    """The names that match any of the patterns (shell style: * ? [abc]).

    Raises:
        ConfigError: a pattern matches none.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not hits:
            raise ConfigError(
                f"{key}: {pattern!r} matches no layer. The layers are: {', '.join(names)}."
            )
        found |= hits
    return found


def _known(given: Iterable[str], names: list[str], key: str) -> None:
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(
            f"{key} names {', '.join(unknown)}, which the model does not have. "
            f"The layers are: {', '.join(names)}."
        )


def _shape(given: Any) -> tuple[int, ...]:
    try:
        shape = tuple(index(size) for size in given)
    except TypeError:
        shape = ()
    if min(shape, default=0) < 1:
        raise ConfigError(
            f"input_shape={given!r}: give the sizes of one image without the batch dimension, such "
            "as (3, 32, 32)."
        )
    return shape
