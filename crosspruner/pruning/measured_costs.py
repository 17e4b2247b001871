"""What removing blocks costs in each layer, set right by pruning each layer alone and looking.

The weighed output error of `cost_curves` is a second-order estimate with a diagonal Fisher: it
takes errors at the positions of an output FM for unrelated, and large errors for small ones. In
front of a global pool both are far from the truth. So each layer is pruned alone, refitted, at a
few levels; the divergence of the network's predictions, on images that the refit has not seen, says
what each stretch of the estimated curve really costs.

Source: measuring layers alone is the sensitivity analysis of Han et al., NIPS 2015; setting an
estimated curve right by it is ours.
"""

import copy
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from crosspruner.hardware import Plan
from crosspruner.pruning.held_out import HeldOut
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.layer_pruner import Samples, collect_centred
from crosspruner.pruning.layer_state import LayerState
from crosspruner.pruning.layer_walk import Walk
from crosspruner.pruning.layer_weights import finite_weight, moved_bias, survivors, write_weight
from crosspruner.pruning.layerwise import users_of
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.mask_choice import choose_layer_mask
from crosspruner.pruning.walk import Stop
from crosspruner.solver.judge import judge_of
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)

LEVELS = (0.25, 0.5, 0.75, 1.0)
"""Shares of what a layer can give at which it is looked at."""


@torch.no_grad()
def measured_costs(
    dense: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    batches: Sequence[Tensor],
    curves: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Set estimated costs right.

    Args:
        dense: the network, in evaluation mode; its output (N, classes). Not changed.
        plan: its plan.
        layouts: the prunable layers.
        batches: calibration images, two and more in all.
        curves: layer name -> (blocks - fewest_blocks,) estimated costs (`cost_curves`).
        weights: layer name -> (Cout,) what a squared error of each output weighs.
        settings: of the moments and the refit.
        generator: CPU generator of the positions drawn.

    Returns:
        Layer name -> costs of the same shape, never falling: rise of the mean Kullback-Leibler
        divergence, in nats, from what the network predicts with nothing removed.
    """
    images = HeldOut(batches)
    users = users_of(plan, layouts)
    images.expect(dense)
    trial = copy.deepcopy(dense)
    walk = Walk(trial, dense, users, images.fitting, settings, generator)
    walk.only_layers()
    measured: dict[str, Tensor] = {}

    def visit(stop: Stop, samples: Samples) -> None:
        layout, module = layouts[stop.name], stop.modules[0]
        weight = finite_weight(module, stop.name)
        raw, moments = collect_centred(stop, layout, samples, settings, generator)
        own = weights.get(stop.name)
        scale = None if own is None else own.sqrt()
        problem = layer_problem(moments, weight, scale, settings.damping, settings.foresees_refit)
        judge = judge_of(problem)
        before = LayerState.of(trial, stop)
        most = layout.blocks - layout.fewest_blocks
        levels = sorted({round(share * most) for share in LEVELS} - {0})
        costs = []
        for removed in levels:
            blocks = layout.blocks - removed
            mask = choose_layer_mask(problem, blocks, layout, "taylor", generator, judge)
            _, new = survivors(module, mask, moments, settings)
            write_weight(stop, new, moved_bias(stop, raw, new, settings))
            if stop.norm is not None:
                walk.reestimate(walk.norms[stop.norm])
            costs.append(images.divergence(trial))
            before.restore()
        measured[stop.name] = through(curves[stop.name], levels, costs)
        log.info(
            "%s alone, divergence of the predictions: %s",
            stop.name,
            ", ".join(f"{c:.4f} without {r}" for r, c in zip(levels, costs, strict=True)),
        )

    walk.run(visit, between=True)
    return measured


def through(curve: Tensor, levels: Sequence[int], costs: Sequence[float]) -> Tensor:
    """Bend an estimated curve so that it passes through what was measured.

    Args:
        curve: (R,) float64 >= 0, estimated rise of the cost with each further removal.
        levels: removals at which it was measured, rising, the last one R.
        costs: what was measured there; noise may make them fall, or negative.

    Returns:
        (R,) float64, never falling. Its sums at the levels are the costs where these allow it.
    """
    if not levels:
        return curve
    total = curve.double().cumsum(0).numpy()
    total = np.maximum(total, max(1e-12 * total[-1], 1e-300))
    rising = np.maximum.accumulate(np.maximum(costs, 1e-9))
    removed = np.arange(1, len(total) + 1)
    # The factor between the two is what changes slowly: it spans orders of magnitude.
    factor = np.log(rising / total[np.array(levels) - 1])
    bent = total * np.exp(np.interp(removed, levels, factor))
    level = np.searchsorted(levels, removed)
    bent = bent.clip(np.concatenate([[0.0], rising])[level], rising[level])
    return torch.from_numpy(isotonic_regression(np.diff(bent, prepend=0.0)).x)
