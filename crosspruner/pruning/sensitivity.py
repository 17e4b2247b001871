"""Prune each layer as far as three conditions allow: the accuracy, its own ratio, its crossbars.

Layer by layer along the network, a layer gives more and more of its crossbars, until

    accuracy    the network would fall below the threshold on held-out images,
    ratio       the layer has given its largest share,
    crossbars   the layer is down to Tc crossbars, or to one input group for every output, or
    target      the whole network has given what was asked for.

What the layer gave before the condition was met is kept.

Source: the layer-wise procedure of Liang et al., IEEE Access 2018, with its three conditions. Ours:
the steps, and that the allowed loss of accuracy grows in equal parts along the layers, so that the
first ones cannot use it up.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from crosspruner.hardware import Plan
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.layer_pruner import Pruned, Samples, prune_layer
from crosspruner.pruning.layer_state import LayerState
from crosspruner.pruning.layer_walk import Walk
from crosspruner.pruning.layerwise import users_of
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.output_weights import norm_weights
from crosspruner.pruning.walk import Stop
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module], float]
"""A network in evaluation mode -> its accuracy, 0 to 1; the same value for the same network."""


@torch.no_grad()
def prune_by_sensitivity(
    network: nn.Module,
    dense: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    ratio: float,
    batches: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    settings: LayerwiseSettings,
    limits: BudgetSettings,
    generator: torch.Generator,
    evaluate: Evaluate,
) -> Pruned:
    """Prune a network in place, each layer until a condition stops it.

    Args:
        network, dense, plan, layouts, batches, weights, settings, generator: as for
            `layerwise.prune_layers`.
        ratio: fraction of the plan's compute crossbars that is enough, in [0, 1).
        limits: max_drop, max_layer_ratio, min_crossbars and step.
        evaluate: accuracy on images that are neither trained nor tested on.

    Returns:
        Masks, orders and errors; the crossbars removed may be fewer than `ratio` asks for.
    """
    walk = Walk(network, dense, users_of(plan, layouts), batches, settings, generator)
    result = Pruned()
    start = evaluate(network)
    known = start
    left = math.floor(ratio * plan.compute_crossbars + 1e-9)  # 28 / 390 * 390 is below 28
    log.info("accuracy %.4f before, %.4f allowed in the end", start, start - limits.max_drop)

    def visit(stop: Stop, samples: Samples) -> None:
        nonlocal left, known
        name, layout = stop.name, layouts[stop.name]
        floor = start - limits.max_drop * (len(result.masks) + 1) / len(layouts)
        own = weights[name] if name in weights else norm_weights(dense, walk.theirs[name])
        pairs = list(samples())  # every level looks at the same ones
        result.masks[name] = torch.ones(layout.shape, dtype=torch.bool)
        kept = layout.blocks
        before = LayerState.of(network, stop)
        last, reason = before, ""
        for blocks, limit in _levels(layout, limits, left):
            if blocks >= kept:
                reason = limit
                break
            trial = Pruned()
            before.restore()
            prune_layer(stop, layout, blocks, lambda: pairs, own, settings, generator, trial)
            if stop.norm is not None:
                walk.reestimate(walk.norms[stop.norm])
            scored = evaluate(network)
            if scored < floor:
                last.restore()
                reason = "accuracy"
                break
            result.masks.update(trial.masks)
            result.orders.pop(name, None)  # of a level before
            result.orders.update(trial.orders)
            result.errors.update(trial.errors)
            kept, known, last = blocks, scored, LayerState.of(network, stop)
            reason = limit
        left -= (layout.blocks - kept) * layout.crossbars_per_block
        log.info(
            "%s: %d of %d crossbars kept, accuracy %.4f (at least %.4f), stopped by %s",
            *(name, kept * layout.crossbars_per_block),
            *(layout.blocks * layout.crossbars_per_block, known, floor, reason),
        )
        result.stopped_by[name] = reason

    walk.run(visit, between=True)
    return result


def _levels(layout: GroupLayout, limits: BudgetSettings, left: int) -> list[tuple[int, str]]:
    """Blocks to keep at each further step, and what stops the layer if the accuracy does not."""
    floors = {
        "ratio": math.ceil(layout.blocks * (1 - limits.max_layer_ratio) - 1e-9),
        "crossbars": max(
            layout.fewest_blocks, -(-limits.min_crossbars // layout.crossbars_per_block)
        ),
        "target": layout.blocks - left // layout.crossbars_per_block,
    }
    limit, fewest = max(floors.items(), key=lambda item: item[1])
    step = max(1, round(limits.step * layout.blocks))
    levels = list(range(layout.blocks - step, fewest, -step))
    return [(blocks, limit) for blocks in (*levels, fewest)]
