"""What removing blocks costs in each layer of the dense network: what a global budget weighs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crosspruner.hardware import Plan
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.layer_pruner import Samples, collect_centred
from crosspruner.pruning.layer_walk import Walk
from crosspruner.pruning.layer_weights import finite_weight
from crosspruner.pruning.layerwise import users_of
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.mask_choice import removal_curve
from crosspruner.pruning.output_weights import norm_weights
from crosspruner.pruning.walk import Stop
from crosspruner.sparsity import GroupLayout


@torch.no_grad()
def cost_curves(
    dense: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    batches: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Estimate the cost of every removal on the dense network, all layers in one pass.

    Args:
        dense: the network, in evaluation mode; not changed.
        plan: its plan.
        layouts: the prunable layers.
        batches: calibration images.
        weights: layer name -> (Cout,) what a squared error of each output weighs; they make the
            layers comparable.
        settings: of the moments, and whether weights will be refitted.
        generator: CPU generator of the positions drawn.

    Returns:
        Layer name -> (blocks - fewest_blocks,), see `mask_choice.removal_curve`. Where the weights
        of a layer are not known, shares of the energy of its outputs.
    """
    curves: dict[str, Tensor] = {}
    walk = Walk(dense, dense, users_of(plan, layouts), batches, settings, generator)
    walk.only_layers()

    def visit(stop: Stop, samples: Samples) -> None:
        layout, module = layouts[stop.name], stop.modules[0]
        weight = finite_weight(module, stop.name)
        _, moments = collect_centred(stop, layout, samples, settings, generator)
        known = stop.name in weights
        own = weights[stop.name] if known else norm_weights(dense, stop)
        scale = None if own is None else own.sqrt()
        problem = layer_problem(moments, weight, scale, settings.damping, settings.foresees_refit)
        curve = removal_curve(problem, layout)
        assert problem.energy is not None
        energy = problem.energy.sum().clamp(min=torch.finfo(curve.dtype).tiny)
        curves[stop.name] = (curve if known else curve / energy).cpu()

    walk.run(visit)
    return curves
