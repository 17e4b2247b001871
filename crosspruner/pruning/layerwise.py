"""Layer by layer along the network: choose a mask, refit what survives, go on to the next layer.

Inputs come from the network as pruned so far, targets from the dense network, so each layer also
makes up for what the layers before it lost. A batch norm is measured anew as soon as all before it
is final, before anything behind it is looked at.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crosspruner.errors import ModelError
from crosspruner.hardware import Plan
from crosspruner.pruning.batch_norm import reestimate
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.mask_choice import choose_layer_mask
from crosspruner.pruning.moments import MAX_BYTES, Moments, MomentSums
from crosspruner.pruning.reconstruct import mean_output, reconstruction_error, refit
from crosspruner.pruning.walk import Stop, run_to, stops
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)

REORDERS = ("none", "importance")


@dataclass(frozen=True)
class LayerwiseSettings:
    """How each layer is pruned.

    Args:
        solver: a name in `solver.SOLVERS`.
        reorder: one of REORDERS.
        refit: whether surviving weights are refitted.
        damping: of the refit, a share of the mean input energy, > 0.
        positions: output positions per image that enter the moments; None = all.
        max_bytes: largest second moment kept whole.
    """

    solver: str = "lgd_rpp"
    reorder: str = "none"
    refit: bool = True
    damping: float = 0.01
    positions: int | None = 128
    max_bytes: int = MAX_BYTES


@dataclass
class Pruned:
    """What the walk decided."""

    masks: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> (U, P) bool, on the CPU."""
    orders: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> (G, Cin / G) input order, of reordered layers."""
    errors: dict[str, float] = field(default_factory=dict)
    """Layer name -> error of its outputs relative to their energy (variance where a bias or a batch
    norm takes up the mean)."""


@torch.no_grad()
def prune_layers(
    network: nn.Module,
    dense: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    budget: Mapping[str, int],
    batches: Sequence[Tensor],
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> Pruned:
    """Prune a network in place.

    Args:
        network: the copy to prune, in evaluation mode.
        dense: the network as it was, in evaluation mode; not changed.
        plan: the dense plan.
        layouts: the layers that may be pruned.
        budget: layer name -> blocks to keep.
        batches: calibration images.
        settings: how.
        generator: source of all randomness, on the CPU.

    Returns:
        Masks, orders and errors. A layer that keeps all its blocks is left as it is.

    Raises:
        DataError: NaN or Inf on the way, or a layer that no image reaches.
        ModelError: a layer's weight is not a plain parameter.
    """
    users = {name: [name] for name in layouts}
    for name, counted in plan.shared.items():
        if counted in users:
            users[counted].append(name)
    ours = stops(network, batches[0], users)
    theirs = {stop.name: stop for stop in stops(dense, batches[0], users)}
    result = Pruned()
    changed = False
    for stop in ours:
        if stop.is_norm:
            if changed:
                reestimate(network, batches, stop)
            continue
        layout, blocks = layouts[stop.name], budget[stop.name]
        if blocks == layout.blocks:
            result.masks[stop.name] = torch.ones(layout.shape, dtype=torch.bool)
            continue
        source = _Source(dense, theirs[stop.name], network if changed else None, stop, batches)
        _prune_layer(source, layout, blocks, settings, generator, result)
        changed = True
    return result


@dataclass
class _Source:
    """Where the moments of one layer come from."""

    dense: nn.Module
    dense_stop: Stop
    network: nn.Module | None
    """The network as pruned so far; None while it still computes what the dense one does."""
    stop: Stop
    batches: Sequence[Tensor]

    def moments(
        self, layout: GroupLayout, settings: LayerwiseSettings, generator: torch.Generator
    ) -> Moments:
        """One pass over the calibration images."""
        sums = MomentSums(
            self.stop.modules[0], layout, settings.max_bytes, settings.positions, generator
        )
        targets: list[Tensor] = []

        def note_target(module: nn.Module, _: Tensor, output: Tensor) -> None:
            targets.append(_without_bias(module, output))

        def take_both(module: nn.Module, inputs: Tensor, output: Tensor) -> None:
            sums.update(inputs, _without_bias(module, output))

        def take_input(_: nn.Module, inputs: Tensor, _output: Tensor) -> None:
            sums.update(inputs, targets.pop(0))

        for images in self.batches:
            if self.network is None:
                run_to(self.dense, images, self.dense_stop, take_both)
            else:
                run_to(self.dense, images, self.dense_stop, note_target)
                run_to(self.network, images, self.stop, take_input)
        return sums.average()

    def output_scale(self) -> Tensor | None:
        """(Cout,) what an error weighs behind the batch norm: |gamma| / standard deviation."""
        if self.stop.norm is None:
            return None
        norm = self.dense.get_submodule(self.stop.norm)
        assert isinstance(norm, _BatchNorm)
        if norm.running_var is None:
            return None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        return scale if norm.weight is None else scale * norm.weight.detach().double().abs()


def _prune_layer(
    source: _Source,
    layout: GroupLayout,
    blocks: int,
    settings: LayerwiseSettings,
    generator: torch.Generator,
    result: Pruned,
) -> None:
    """Choose the mask of one layer, refit its weights, write both."""
    module, name = source.stop.modules[0], layout.name
    weight, bias = _parameters(module, name)
    # Where a batch norm or a bias takes up any shift, only the variation about the mean counts.
    moves_bias = settings.refit and bias is not None and len(source.stop.modules) == 1
    centre = source.stop.norm is not None or moves_bias
    raw = source.moments(layout, settings, generator)
    moments = raw.centred() if centre else raw
    if settings.reorder == "importance":
        order = moments.importance(weight).argsort(dim=1, descending=True, stable=True)
        result.orders[name] = order.cpu()
        layout = replace(layout, input_order=order.cpu())
        cut = raw.runs > 1  # other groups would stand in each run: look once more
        raw = source.moments(layout, settings, generator) if cut else raw.reordered(order.cpu())
        moments = raw.centred() if centre else raw

    scale = source.output_scale()
    foresees_refit = settings.refit or settings.solver == "obs_group"
    problem = layer_problem(moments, weight, scale, settings.damping, foresees_refit)
    # obs_group has no other form; on layers of several bands greedy elimination stands in for it.
    several_bands = settings.solver == "obs_group" and problem.refit is None
    solver = "greedy" if several_bands else settings.solver
    mask = choose_layer_mask(problem, blocks, layout, solver, generator)
    fixed = torch.where(layout.expand_like(mask, weight).to(weight.device), weight, 0.0)
    new = refit(moments, weight, mask, settings.damping) if settings.refit else fixed
    result.masks[name] = mask
    result.errors[name] = _relative_error(moments, new, scale)
    log.info(
        "%s: %d of %d blocks kept, output error %.4f (%.4f before the refit), %d samples",
        *(name, blocks, layout.blocks, result.errors[name]),
        *(_relative_error(moments, fixed, scale), moments.samples),
    )
    if moves_bias:
        assert bias is not None
        bias.add_((raw.mean_out.flatten() - mean_output(raw, new)).to(bias))
    weight.copy_(new)


def _without_bias(module: nn.Module, output: Tensor) -> Tensor:
    """A copy: what comes behind the layer may overwrite its output."""
    bias = module.bias
    if not isinstance(bias, Tensor):
        return output.clone()
    return output - (bias.view(-1, 1, 1) if isinstance(module, nn.Conv2d) else bias)


def _parameters(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    if module._parameters.get("weight") is None:
        raise ModelError(
            f"layer {name} computes its weight anew in each pass ({type(module).__name__}): remove "
            "the parametrization first, or exclude the layer"
        )
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not bool(weight.isfinite().all()):
        raise ModelError(f"layer {name} has NaN or Inf in its weight: give a network that works")
    return weight, module._parameters.get("bias")


def _relative_error(moments: Moments, weight: Tensor, scale: Tensor | None) -> float:
    error, energy = reconstruction_error(moments, weight), moments.energy.flatten()
    if scale is not None:
        error, energy = error * scale.square(), energy * scale.square()
    return float(error.sum() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny))
