"""One layer of the layer-wise procedure: choose its mask, refit what survives, write both."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from crosspruner.pruning.layer_order import input_order
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.layer_weights import (
    finite_weight,
    moved_bias,
    survivors,
    takes_up_means,
    write_weight,
)
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.mask_choice import choose_layer_mask
from crosspruner.pruning.moment_sums import MomentSums
from crosspruner.pruning.moments import Moments
from crosspruner.pruning.reconstruct import reconstruction_error
from crosspruner.pruning.targets import Targets
from crosspruner.pruning.walk import Stop
from crosspruner.solver.refit import RefitProblem
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
    weight = finite_weight(stop.modules[0], layout.name)
    raw, moments = collect_centred(stop, layout, samples, settings, generator)
    module = stop.modules[0]
    order = input_order(settings.reorder, module, moments, weight, weights, blocks, layout)
    if order is not None:
        raw, moments = _in_order(order, stop, layout, samples, settings, generator, raw)
        result.orders[layout.name] = order
    known = None
    if mask is None:
        mask, known = _choose(moments, weight, weights, blocks, settings, generator)
    fixed, new = survivors(module, mask, moments, settings, known)
    del known  # as large as the moments
    error = relative_error(moments, new, weights)
    fixed_error = error if new is fixed else relative_error(moments, fixed, weights)
    write_weight(stop, new, moved_bias(stop, raw, new, settings))
    result.masks[layout.name], result.errors[layout.name] = mask, error
    log.log(
        level,
        "%s: %d of %d blocks kept, output error %.4f (%.4f before the refit), %d samples",
        *(layout.name, blocks, layout.blocks, error, fixed_error, moments.samples),
    )


def _in_order(
    order: Tensor,
    stop: Stop,
    layout: GroupLayout,
    samples: Samples,
    settings: LayerwiseSettings,
    generator: torch.Generator,
    raw: Moments,
) -> tuple[Moments, Moments]:
    """A layer's moments with its input FMs in another order, and the same centred."""
    if raw.runs == 1:
        own = raw.reordered(order)
        return own, own.centred() if takes_up_means(stop, settings) else own
    # Cut moments have other groups in each run then: look once more.
    ordered = replace(layout, input_order=order)
    return collect_centred(stop, ordered, samples, settings, generator)


def _choose(
    moments: Moments,
    weight: Tensor,
    weights: Tensor | None,
    blocks: int,
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> tuple[Tensor, RefitProblem | None]:
    """(U, P) bool the mask of the solver, and the refit form of the problem it was chosen on."""
    scale = None if weights is None else weights.sqrt()
    problem = layer_problem(moments, weight, scale, settings.damping, settings.foresees_refit)
    # obs_group has no other form; on layers of several bands greedy elimination stands in for it.
    several_bands = settings.solver == "obs_group" and problem.refit is None
    solver = "greedy" if several_bands else settings.solver
    mask = choose_layer_mask(problem, blocks, moments.layout, solver, generator)
    return mask, problem.refit


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


def relative_error(moments: Moments, weight: Tensor, weights: Tensor | None = None) -> float:
    """Squared error of a layer's outputs over their energy, each output weighed by `weights`."""
    error, energy = reconstruction_error(moments, weight), moments.energy.flatten()
    if weights is not None:
        weights = weights.to(error)
        error, energy = error * weights, energy * weights
    return float(error.sum() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny))
