"""Layer by layer along the network: choose a mask, refit what survives, go on to the next layer.

Inputs come from the network as pruned so far, targets from the dense network, so each layer also
makes up for what the layers before it lost. A batch norm is set right as soon as all before it is
final, before anything behind it is looked at.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crosspruner.hardware import Plan
from crosspruner.pruning.layer_pruner import Pruned, Samples, prune_layer
from crosspruner.pruning.layer_walk import Walk
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.output_weights import norm_weights
from crosspruner.pruning.walk import Stop
from crosspruner.sparsity import GroupLayout


@torch.no_grad()
def prune_layers(
    network: nn.Module,
    dense: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    budget: Mapping[str, int],
    batches: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    settings: LayerwiseSettings,
    generator: torch.Generator,
    masks: Mapping[str, Tensor] | None = None,
    level: int = logging.INFO,
    walk: Walk | None = None,
) -> Pruned:
    """Prune a network in place.

    Args:
        network: the copy to prune, in evaluation mode.
        dense: the network as it was, in evaluation mode; not changed.
        plan: the dense plan.
        layouts: the layers that may be pruned.
        budget: layer name -> blocks to keep.
        batches: calibration images.
        weights: layer name -> (Cout,) what a squared error of each output weighs
            (`output_weights`); a layer that is missing takes those of its batch norm.
        settings: how.
        generator: source of all randomness, on the CPU.
        masks: layer name -> (U, P) bool, of layers whose masks are chosen already.
        level: of the lines that the log gets, one a layer.
        walk: along this network on these images; None = made here.

    Returns:
        Masks, orders and errors. A layer that keeps all its blocks is left as it is.

    Raises:
        DataError: NaN or Inf on the way, or a layer that no image reaches.
        ModelError: a layer's weight is not a plain parameter.
    """
    result = Pruned()
    for name, layout in layouts.items():
        if budget[name] == layout.blocks:
            result.masks[name] = torch.ones(layout.shape, dtype=torch.bool)
    if walk is None:
        walk = Walk(network, dense, users_of(plan, layouts), batches, settings, generator)
    walk.keep_as_they_are(result.masks)

    def visit(stop: Stop, samples: Samples) -> None:
        name = stop.name
        own = weights[name] if name in weights else norm_weights(dense, walk.theirs[name])
        prune_layer(
            *(stop, layouts[name], budget[name], samples, own, settings, generator, result),
            None if masks is None else masks.get(name),
            level,
        )

    walk.run(visit)
    return result


def users_of(plan: Plan, layouts: Mapping[str, GroupLayout]) -> dict[str, list[str]]:
    """Layer name -> names of all modules that use its weight."""
    users = {name: [name] for name in layouts}
    for name, counted in plan.shared.items():
        if counted in users:
            users[counted].append(name)
    return users
