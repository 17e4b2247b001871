"""Performance-aware pruning on crossbars: profile the staircase, prune to its edges, refill.

Each layer is profiled alone: what it costs with its best n groups for every n (a staircase: most
groups share a crossbar that others have paid for), and what the network loses when this layer alone
is pruned to an edge of a step. A multiple-choice knapsack picks an edge for every layer; crossbars
that are left over go to single steps; slots that are paid for are refilled with the best columns.

Source: Radu et al., IISWC 2019 (arXiv 2002.08697), who measure the latency of GPU kernels over the
number of channels and prune only to the right edges of its steps. Our reading: crossbars for
latency, groups for channels, block L2 norms for the order, the divergence of the predictions for
the accuracy lost, and the knapsack in place of one layer after another.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.hardware.plan import Plan
from crosspruner.pruning.budget import check_ratio, settle, units_of
from crosspruner.pruning.trial_masks import dense_matrices, on_trial
from crosspruner.pruning.walk import forward
from crosspruner.solver.multiple_choice import choose_levels
from crosspruner.sparsity import GroupLayout, project
from crosspruner.sparsity.staircase import edge_mask, profile

IMAGES = 128
"""Calibration images that each step is measured on."""


@torch.no_grad()
def performance_aware_masks(
    network: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    users: Mapping[str, Sequence[str]],
    ratio: float,
    batches: Sequence[Tensor],
    generator: torch.Generator,
    levels: int = 8,
) -> dict[str, Tensor]:
    """Choose the masks of all layers.

    Args:
        network: dense, in evaluation mode; its weights are put back.
        plan, layouts, ratio, batches: as for `falcon_masks`.
        users, generator: not needed: nothing is drawn.
        levels: edges that are measured in each layer, >= 2; evenly spread from all its crossbars to
            the fewest.

    Returns:
        Layer name -> (U, P) bool at the exact budget.
    """
    target = check_ratio(plan, layouts, ratio)
    unit, blocks, most = units_of(layouts)
    scores = {n: _norms(m, layouts[n]) for n, m in dense_matrices(network, layouts).items()}
    seen = torch.cat(list(batches))[:IMAGES].split(len(batches[0]))
    before = [forward(network, images).float().log_softmax(1) for images in seen]
    edges, losses = [], []
    for name, layout in layouts.items():
        steps = torch.linspace(layout.blocks, layout.fewest_blocks, levels).round().long().unique()
        edges.append(steps)
        losses.append(
            torch.tensor(
                [
                    _loss_alone(network, name, _edge(scores[name], int(b), layout), layout,
                                seen, before)
                    for b in steps
                ]
            )
        )  # fmt: skip
    prices = [steps * int(u) for steps, u in zip(edges, unit, strict=True)]
    # The target may lie up to half a unit beyond what the layers can give.
    money = int((blocks * unit).sum()) - min(round(target), int((most * unit).sum()))
    picked = choose_levels(prices, losses, money)
    kept = torch.stack([steps[level] for steps, level in zip(edges, picked, strict=True)])
    removed = settle((blocks - kept).double(), unit, most, target)
    return {
        name: _edge(scores[name], int(b), layout)
        for (name, layout), b in zip(layouts.items(), blocks - removed, strict=True)
    }


def _edge(scores: Tensor, blocks: int, layout: GroupLayout) -> Tensor:
    """(U, P) bool: the right edge of a step, refilled."""
    fewest = int(profile(scores, layout)[1][layout.units - 1])
    if blocks >= fewest:
        return edge_mask(scores, blocks, layout)
    return project(scores, blocks, layout)  # too few for the best group of every output


def _norms(matrix: Tensor, layout: GroupLayout) -> Tensor:
    return layout.sum_by_group(matrix.double().square()).sqrt().cpu()


def _loss_alone(
    network: nn.Module,
    name: str,
    mask: Tensor,
    layout: GroupLayout,
    batches: Sequence[Tensor],
    before: Sequence[Tensor],
) -> float:
    """KL divergence of the predictions, mean over images, with this layer alone pruned."""
    with on_trial(network, {name: layout}) as trial:
        trial.put({name: mask})
        total = sum(
            float(F.kl_div(forward(network, x).float().log_softmax(1), old, log_target=True,
                           reduction="sum"))
            for x, old in zip(batches, before, strict=True)
        )  # fmt: skip
    return total / sum(len(images) for images in batches)
