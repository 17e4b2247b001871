"""FALCON on crossbars: groups chosen over all layers at once, their price the crossbars they take.

Keeping s_g of group g (1 = all, 0 = none) raises the loss, to second order, by

    Q(s) = E_n (x_n'(s - s0))^2 / 2 + E_n x_n'(s - s0) + ridge/2 |s - 1|^2

with x_n the slopes of image n (`group_slopes`) at the network as pruned so far, s0. Q falls by
projected gradient steps scaled by its diagonal d; the projection keeps the s_g^2 d_g worth most for
the crossbars (`global_choice`). The budget tightens over several stages, each with new slopes.

Source: FALCON and its multi-stage form FALCON++ (Meng et al., AISTATS 2024). Our reading: groups
with one factor each instead of single weights, crossbars instead of FLOPs, the scaling by the
diagonal, masks judged with factors 1, longer steps beside the safe one (as CHITA, Benbaki et al.
2023, by the same group), and the layer-wise refit that follows in place of its back-solve on the
same quadratic.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crosspruner.hardware.plan import Plan
from crosspruner.pruning.global_choice import choose_masks
from crosspruner.pruning.group_slopes import group_slopes
from crosspruner.pruning.trial_masks import on_trial
from crosspruner.sparsity import GroupLayout

_STEPS = (1.0, 2.0, 4.0)
"""Steps that are tried, in shares of the one that is sure to descend."""


@torch.no_grad()
def falcon_masks(
    network: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    users: Mapping[str, Sequence[str]],
    ratio: float,
    batches: Sequence[Tensor],
    generator: torch.Generator,
    stages: int = 4,
    steps: int = 15,
    ridge: float = 0.01,
) -> dict[str, Tensor]:
    """Choose the masks of all layers.

    Args:
        network: dense, in evaluation mode; its weights are put back.
        plan: the dense plan.
        layouts: the prunable layers.
        users: layer name -> names of the modules that use its weight.
        ratio: fraction of the plan's compute crossbars to remove, in [0, 1).
        batches: calibration images.
        generator: CPU generator of the labels.
        stages: how often slopes are taken anew, >= 1.
        steps: projected gradient steps in each stage, >= 0; 0 = by the diagonal alone.
        ridge: pull of the factors to 1, a share of the mean diagonal, > 0.

    Returns:
        Layer name -> (U, P) bool at the exact budget.
    """
    masks = {name: torch.ones(layout.shape, dtype=torch.bool) for name, layout in layouts.items()}
    with on_trial(network, layouts) as trial:
        for stage in range(1, stages + 1):
            trial.put(masks)
            slopes = group_slopes(network, layouts, users, trial.matrices, batches, generator)
            reached = ratio * (1 - (1 - stage / stages) ** 3)
            masks = _descend(slopes, masks, plan, layouts, reached, steps, ridge)
    return masks


def _descend(
    slopes: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    ratio: float,
    steps: int,
    ridge: float,
) -> dict[str, Tensor]:
    matrix = torch.cat([slopes[name] for name in layouts], dim=1).double()
    start = torch.cat([masks[name].flatten() for name in layouts]).double()
    diagonal = matrix.square().mean(0)
    pull = ridge * diagonal.mean().clamp(min=torch.finfo(diagonal.dtype).tiny)
    diagonal = diagonal + pull
    sizes = [masks[name].numel() for name in layouts]

    def project(factors: Tensor) -> dict[str, Tensor]:
        worth = (factors.square() * diagonal).split(sizes)
        scores = {n: w.view(masks[n].shape) for n, w in zip(layouts, worth, strict=True)}
        return choose_masks(scores, plan, layouts, ratio)

    def flat(chosen: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([chosen[name].flatten() for name in layouts])

    def gradient(factors: Tensor) -> Tensor:
        shift = matrix @ (factors - start)
        return matrix.T @ (shift + 1) / len(matrix) + pull * (factors - 1)

    def loss(factors: Tensor) -> float:
        shift = matrix @ (factors - start)
        return float((shift.square() / 2 + shift).mean() + pull / 2 * (factors - 1).square().sum())

    step = 1 / _largest(matrix / diagonal.sqrt(), pull / diagonal)
    best = project(torch.ones_like(start))
    factors = flat(best).double()
    least = loss(factors)
    for _ in range(steps):
        slope = gradient(factors) / diagonal
        # The safe step may be too short to change the support: longer ones are tried beside it.
        tried = [factors - step * longer * slope for longer in _STEPS]
        chosen = [project(one) for one in tried]
        losses = [loss(flat(one).double()) for one in chosen]
        first = min(range(len(tried)), key=losses.__getitem__)
        factors = tried[first] * flat(chosen[first])
        if losses[first] < least:
            best, least = chosen[first], losses[first]
    return best


def _largest(scaled: Tensor, pull: Tensor) -> float:
    """The largest curvature of the scaled quadratic, by power iteration, with a margin."""
    vector = torch.ones(scaled.shape[1], dtype=scaled.dtype)
    size = 1.0
    for _ in range(20):
        vector = vector / vector.norm().clamp(min=torch.finfo(scaled.dtype).tiny)
        vector = scaled.T @ (scaled @ vector) / len(scaled) + pull * vector
        size = float(vector.norm())
    return 1.05 * max(size, torch.finfo(scaled.dtype).tiny)
