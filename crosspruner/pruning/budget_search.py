"""A step from one division of the crossbars towards another, as far as it helps."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crosspruner.hardware import Plan
from crosspruner.pruning.budget import check_ratio, settle, units_of
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.network_trials import NetworkTrials
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Lengths of the step that are tried."""


@torch.no_grad()
def search_between(
    dense: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    ratio: float,
    batches: Sequence[Tensor],
    start: Mapping[str, int],
    end: Mapping[str, int],
    weights: Mapping[str, Tensor],
    settings: LayerwiseSettings,
    generator: torch.Generator,
) -> dict[str, int]:
    """Prune the whole network at points between two divisions, and take the best.

    Costs of layers that were looked at one by one do not add up once all layers are pruned, so the
    least of their sum may lie beyond the least of what they stand for. Every point is tried twice,
    each half of the images fitting while the other judges: networks that lose much come out some
    points of accuracy apart on other images. The trials choose their masks by `taylor`, a tenth of
    the time of `lgd_rpp`.

    Args:
        dense: the network, in evaluation mode; its output (N, classes). Not changed.
        plan: its plan.
        layouts: the prunable layers.
        ratio: fraction of the plan's compute crossbars to remove, in [0, 1).
        batches: calibration images, two and more in all.
        start, end: layer name -> blocks to keep, each removing `ratio`.
        weights: layer name -> (Cout,) what a squared error of each output weighs.
        settings: how layers will be pruned.
        generator: CPU generator of all randomness; every trial draws alike.

    Returns:
        Layer name -> blocks to keep, removing `ratio`; `start` where no step helps.

    Source: a line search, judged by two-fold cross-validation; ours.
    """
    trials = NetworkTrials(dense, plan, layouts, batches, weights, generator)
    points = [between(plan, layouts, ratio, start, end, step) for step in STEPS]
    errors: dict[tuple[int, ...], float] = {}  # points of a short line may be the same
    for blocks in points:
        point = tuple(blocks.values())
        if point not in errors:
            errors[point] = trials.error(blocks, settings)
    found = [errors[tuple(blocks.values())] for blocks in points]
    log.info(
        "squared error of the logits from the uniform to the estimated budget: %s",
        ", ".join(f"{d:.4f} at {s:g}" for s, d in zip(STEPS, found, strict=True)),
    )
    return points[found.index(min(found))]


def between(
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    ratio: float,
    start: Mapping[str, int],
    end: Mapping[str, int],
    step: float,
) -> dict[str, int]:
    """The division on the line from one to another, in whole blocks.

    Args:
        step: 0 = start, 1 = end.

    Returns:
        Layer name -> blocks to keep.
    """
    target, (unit, blocks, most) = check_ratio(plan, layouts, ratio), units_of(layouts)
    kept = torch.tensor([[start[n], end[n]] for n in layouts], dtype=torch.float64)
    removed = blocks - kept @ torch.tensor([1 - step, step], dtype=torch.float64)
    removed = settle(removed, unit, most, target)
    return dict(zip(layouts, (blocks - removed).tolist(), strict=True))
