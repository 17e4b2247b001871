"""One layer of the layer-wise procedure: choose its mask, refit what survives, write both."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from crosspruner.errors import ModelError
from crosspruner.hardware.weight_form import attainable, form_of, read_matrix, write_matrix
from crosspruner.pruning.layer_order import orders_to_try
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.mask_choice import choose_layer_mask
from crosspruner.pruning.moment_sums import MomentSums
from crosspruner.pruning.moments import Moments
from crosspruner.pruning.reconstruct import mean_output, reconstruction_error, refit
from crosspruner.pruning.targets import Targets
from crosspruner.pruning.walk import Stop
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)

Samples = Callable[[], Iterable[tuple[Tensor, Targets]]]
"""The layer's inputs in the pruned network and its outputs in the dense one, batch by batch; every
call gives the same ones."""


@dataclass
class Pruned:
    """What the walk decided."""

    masks: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> (U, P) bool, on the CPU."""
    orders: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> (G, Cin / G) input order, of reordered layers."""
    errors: dict[str, float] = field(default_factory=dict)
    """Layer name -> error of its outputs relative to their energy (variance where a bias or a batch
    norm takes up the mean), each output weighed."""
    stopped_by: dict[str, str] = field(default_factory=dict)
    """Layer name -> the condition that stopped it (`sensitivity`)."""


def prune_layer(
    stop: Stop,
    layout: GroupLayout,
    blocks: int,
    samples: Samples,
    weights: Tensor | None,
    settings: LayerwiseSettings,
    generator: torch.Generator,
    result: Pruned,
    mask: Tensor | None = None,
    level: int = logging.INFO,
) -> None:
    """Choose the mask of one layer and refit its weights, in place.

    Args:
        stop: the layer in the network to prune; several modules if they share the weight.
        layout: its groups.
        blocks: blocks to keep.
        samples: calibration data.
        weights: (Cout,) what a squared error of each output weighs; None = all alike.
        settings: how.
        generator: source of all randomness, on the CPU.
        result: takes the mask, the order and the error.
        mask: (U, P) bool where it is chosen already; None = the solver chooses.
        level: of the line that the log gets.
    """
    module, name = stop.modules[0], layout.name
    weight, _ = parameters(module, name)
    raw, moments = collect_centred(stop, layout, samples, settings, generator)
    best: _Trial | None = None
    for order in orders_to_try(settings.reorder, moments, weight, weights, blocks, layout):
        own_raw, own = raw, moments
        if order is not None:
            # Cut moments have other groups in each run then: look once more.
            ordered = replace(layout, input_order=order)
            own_raw = (
                raw.reordered(order)
                if raw.runs == 1
                else collect(module, ordered, samples, settings, generator)
            )
            own = own_raw.centred() if takes_up_means(stop, settings) else own_raw
        chosen = mask
        if chosen is None:
            chosen = _choose(own, weight, weights, blocks, settings, generator)
        fixed, new = survivors(module, chosen, own, settings)
        error = relative_error(own, new, weights)
        if best is None or error < best.error:
            best = _Trial(order, chosen, own_raw, own, fixed, new, error)
    assert best is not None
    if best.order is not None:
        result.orders[name] = best.order
    write_weight(stop, best.raw, best.new, settings)
    result.masks[name] = best.mask
    result.errors[name] = best.error
    log.log(
        level,
        "%s: %d of %d blocks kept, output error %.4f (%.4f before the refit), %d samples",
        *(name, blocks, layout.blocks, best.error),
        *(relative_error(best.moments, best.fixed, weights), moments.samples),
    )


@dataclass(frozen=True)
class _Trial:
    """What became of a layer with its input FMs in one order; names as in `prune_layer`."""

    order: Tensor | None
    mask: Tensor
    raw: Moments
    moments: Moments
    fixed: Tensor
    new: Tensor
    error: float


def _choose(
    moments: Moments,
    weight: Tensor,
    weights: Tensor | None,
    blocks: int,
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> Tensor:
    """(U, P) bool the mask of the solver."""
    scale = None if weights is None else weights.sqrt()
    problem = layer_problem(moments, weight, scale, settings.damping, settings.foresees_refit)
    # obs_group has no other form; on layers of several bands greedy elimination stands in for it.
    several_bands = settings.solver == "obs_group" and problem.refit is None
    solver = "greedy" if several_bands else settings.solver
    return choose_layer_mask(problem, blocks, moments.layout, solver, generator)


def survivors(
    module: nn.Module, mask: Tensor, moments: Moments, settings: LayerwiseSettings
) -> tuple[Tensor, Tensor]:
    """The weights that a mask leaves a layer.

    Args:
        module: the layer.
        mask: (U, P) bool.
        moments: of the layer, in the layout that the mask means; centred where means are taken up.
        settings: whether and how to refit.

    Returns:
        The surviving weights as they were, and refitted where that is set.
    """
    weight = read_matrix(module)
    fixed = torch.where(moments.layout.expand_like(mask, weight).to(weight.device), weight, 0.0)
    new = refit(moments, weight, mask, settings.damping) if settings.refit else fixed
    return fixed, attainable(module, new)


def write_weight(stop: Stop, raw: Moments, new: Tensor, settings: LayerwiseSettings) -> None:
    """Give a layer new weights, and the bias that goes with them, in place.

    Args:
        stop: the layer.
        raw: its moments, not centred.
        new: (Cout, fan_in, ...).
        settings: whether the bias may move.
    """
    bias = stop.modules[0]._parameters.get("bias")
    if bias is not None and _moves_bias(stop, settings):
        bias.copy_(dense_bias(bias, raw, new))
    write_matrix(stop.modules[0], new)


def collect(
    module: nn.Module,
    layout: GroupLayout,
    samples: Samples,
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> Moments:
    """The moments of a layer over all samples, not centred."""
    sums = MomentSums(module, layout, settings.max_bytes, settings.positions, generator)
    for inputs, targets in samples():
        sums.update(inputs, targets)
    return sums.average()


def collect_centred(
    stop: Stop,
    layout: GroupLayout,
    samples: Samples,
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> tuple[Moments, Moments]:
    """The moments of a layer, and the same centred where a batch norm or a bias takes up means."""
    raw = collect(stop.modules[0], layout, samples, settings, generator)
    return raw, raw.centred() if takes_up_means(stop, settings) else raw


def takes_up_means(stop: Stop, settings: LayerwiseSettings) -> bool:
    """Whether a batch norm or a bias takes up any shift, so that only variation counts."""
    return stop.norm is not None or _moves_bias(stop, settings)


def _moves_bias(stop: Stop, settings: LayerwiseSettings) -> bool:
    """Whether the refit moves the layer's bias, which a weight that is used once can have."""
    return settings.refit and stop.modules[0].bias is not None and len(stop.modules) == 1


def dense_bias(bias: Tensor, raw: Moments, weight: Tensor) -> Tensor:
    """The bias that gives a layer with new weights the mean output of the dense one."""
    return bias + (raw.mean_out.flatten() - mean_output(raw, weight)).to(bias)


def parameters(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight matrix (Cout, Cin / G, kh, kw) that a layer computes with, and its bias.

    Raises:
        ModelError: the weight is computed in a way that is not known, or not finite.
    """
    if form_of(module) == "computed":
        raise ModelError(
            f"layer {name} computes its weight anew in each pass ({type(module).__name__}): remove "
            "the parametrization first, or exclude the layer"
        )
    weight = read_matrix(module)
    if not bool(weight.isfinite().all()):
        raise ModelError(f"layer {name} has NaN or Inf in its weight: give a network that works")
    return weight, module._parameters.get("bias")


def relative_error(moments: Moments, weight: Tensor, weights: Tensor | None = None) -> float:
    """Squared error of a layer's outputs over their energy, each output weighed by `weights`."""
    error, energy = reconstruction_error(moments, weight), moments.energy.flatten()
    if weights is not None:
        weights = weights.to(error)
        error, energy = error * weights, energy * weights
    return float(error.sum() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny))
