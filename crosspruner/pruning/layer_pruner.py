"""One layer of the layer-wise procedure: choose its mask, refit what survives, write both."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError, ModelError
from crosspruner.hardware.weight_form import attainable, form_of, read_matrix, write_matrix
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.mask_choice import choose_layer_mask
from crosspruner.pruning.moment_sums import MAX_BYTES, MomentSums
from crosspruner.pruning.moments import Moments
from crosspruner.pruning.reconstruct import mean_output, reconstruction_error, refit
from crosspruner.pruning.targets import Targets
from crosspruner.pruning.walk import Stop
from crosspruner.sparsity import GroupLayout
from crosspruner.sparsity.reorder import gather_order, importance_order

log = logging.getLogger(__name__)

REORDERS = ("none", "importance", "tetris")

Samples = Callable[[], Iterable[tuple[Tensor, Targets]]]
"""The layer's inputs in the pruned network and its outputs in the dense one, batch by batch; every
call gives the same ones."""


@dataclass(frozen=True)
class LayerwiseSettings:
    """How each layer is pruned.

    Args:
        solver: a name in `solver.SOLVERS`.
        reorder: one of REORDERS.
        refit: whether surviving weights are refitted.
        damping: of the refit, a share of the mean input energy, > 0.
        positions: output positions per image that enter the moments, >= 1; None = all.
        max_bytes: largest second moment kept whole.

    Raises:
        ConfigError: `damping` or `positions` is out of its range.
    """

    solver: str = "lgd_rpp"
    reorder: str = "none"
    refit: bool = True
    damping: float = 0.01
    positions: int | None = 128
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ConfigError(
                f"procedure.damping={self.damping:g}: give a share of the mean input energy above "
                "0, for example 0.01; procedure.refit=false refits nothing"
            )
        if self.positions is not None and self.positions < 1:
            raise ConfigError(
                f"procedure.positions={self.positions}: give output positions per image, 1 or "
                "more, or null for all"
            )

    @property
    def foresees_refit(self) -> bool:
        """Whether masks are chosen for refitted weights."""
        return self.refit or self.solver == "obs_group"


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
    if settings.reorder != "none":
        order = _order(moments, weight, weights, blocks, layout, settings.reorder)
        result.orders[name] = order
        layout = replace(layout, input_order=order)
        cut = raw.runs > 1  # other groups would stand in each run: look once more
        raw = collect(module, layout, samples, settings, generator) if cut else raw.reordered(order)
        moments = raw.centred() if takes_up_means(stop, settings) else raw

    scale = None if weights is None else weights.sqrt()
    problem = layer_problem(moments, weight, scale, settings.damping, settings.foresees_refit)
    # obs_group has no other form; on layers of several bands greedy elimination stands in for it.
    several_bands = settings.solver == "obs_group" and problem.refit is None
    solver = "greedy" if several_bands else settings.solver
    if mask is None:
        mask = choose_layer_mask(problem, blocks, layout, solver, generator)
    fixed, new = write_survivors(stop, layout, mask, raw, moments, settings)
    result.masks[name] = mask
    result.errors[name] = relative_error(moments, new, weights)
    log.log(
        level,
        "%s: %d of %d blocks kept, output error %.4f (%.4f before the refit), %d samples",
        *(name, blocks, layout.blocks, result.errors[name]),
        *(relative_error(moments, fixed, weights), moments.samples),
    )


def write_survivors(
    stop: Stop,
    layout: GroupLayout,
    mask: Tensor,
    raw: Moments,
    moments: Moments,
    settings: LayerwiseSettings,
) -> tuple[Tensor, Tensor]:
    """Give a layer the weights that a mask leaves, refitted where that is set, in place.

    Args:
        stop: the layer.
        layout: its groups, in the order that the mask means.
        mask: (U, P) bool.
        raw: its moments.
        moments: the same, centred where means are taken up.
        settings: whether and how to refit.

    Returns:
        The surviving weights as they were, and as they are written.
    """
    module = stop.modules[0]
    weight, bias = parameters(module, stop.name)
    fixed = torch.where(layout.expand_like(mask, weight).to(weight.device), weight, 0.0)
    new = refit(moments, weight, mask, settings.damping) if settings.refit else fixed
    new = attainable(module, new)
    if bias is not None and _moves_bias(stop, settings):
        bias.copy_(dense_bias(bias, raw, new))
    write_matrix(module, new)
    return fixed, new


def _order(
    moments: Moments,
    weight: Tensor,
    weights: Tensor | None,
    blocks: int,
    layout: GroupLayout,
    reorder: str,
) -> Tensor:
    """(G, fan_in) the order of the input FMs, on the CPU."""
    if reorder == "importance":
        return importance_order(moments.importance(weight, weights)).cpu()
    energy = moments.kernel_energy(weight)
    if weights is not None:
        energy = energy * weights.to(energy).unsqueeze(1)
    return gather_order(energy, blocks, layout)


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
