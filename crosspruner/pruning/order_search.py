"""Which of the orders of input FMs suits a network: prune it with each, and look at its answers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from crosspruner.hardware import Plan
from crosspruner.pruning.layer_order import ORDERS
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.network_trials import NetworkTrials
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)


@torch.no_grad()
def best_order(
    dense: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    blocks: Mapping[str, int],
    batches: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> str:
    """Prune the whole network with its input FMs in each order, and take the best.

    Errors of single layers do not tell: each order lowers them, and may do harm all the same. Every
    order is tried twice, each half of the images fitting while the other judges. The trials choose
    their masks by `taylor`, a tenth of the time of `lgd_rpp`.

    Args:
        dense: the network, in evaluation mode; its output (N, classes). Not changed.
        plan: its plan.
        layouts: the prunable layers.
        blocks: layer name -> blocks to keep.
        batches: calibration images, two and more in all.
        weights: layer name -> (Cout,) what a squared error of each output weighs.
        settings: how layers will be pruned; its order does not count.
        generator: CPU generator of all randomness; every trial draws alike.

    Returns:
        One of `layer_order.ORDERS`, the first of those that are level.

    Source: ours; judged as budgets are (`budget_search`).
    """
    draws = generator.get_state()
    trials = NetworkTrials(dense, plan, layouts, batches, weights, generator)
    errors = {order: trials.error(blocks, replace(settings, reorder=order)) for order in ORDERS}
    generator.set_state(draws)
    log.info(
        "squared error of the logits by order: %s",
        ", ".join(f"{error:.4f} {order}" for order, error in errors.items()),
    )
    return min(errors, key=lambda order: errors[order])
