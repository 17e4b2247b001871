"""Lasso on the Gram form: shrink all groups together until only `keep` are left.

    minimise  1/2 b' G b - h' b + alpha ||b||_1    over real b

The penalty alpha of each problem is found by bisection; every stage is solved by FISTA for all
problems in one batch, warm-started from the stage before.
"""

import torch
from torch import Tensor

from crosspruner.solver.lgd import largest_eigenvalue
from crosspruner.solver.rpp import check_keep, rpp


def lasso_path(
    gram: Tensor, linear: Tensor, keep: int | Tensor, stages: int = 20, iterations: int = 100
) -> Tensor:
    """Keep the groups that survive the lasso at the smallest penalty that leaves at most `keep`.

    Where fewer survive, the next to enter fill up: the largest |h - G b| among the others.

    Args:
        gram: (B, P, P) float64, symmetric positive semidefinite.
        linear: (B, P) float64.
        keep: groups to keep, one int or (B,).
        stages: bisections of the penalty.
        iterations: FISTA iterations per stage.

    Returns:
        (B, P) bool, exactly `keep` True per row.

    Source: He, Zhang, Sun, ICCV 2017 (lasso over channels, penalty raised until few enough are
    left); Beck and Teboulle, SIAM J. Imaging Sciences 2009 (FISTA).
    """
    keep = check_keep(linear, keep)
    if gram.shape[1] == 0:
        return torch.zeros_like(linear, dtype=torch.bool)
    tiny = torch.finfo(gram.dtype).tiny
    step = 1 / largest_eigenvalue(gram).clamp(min=tiny).unsqueeze(1)
    top = linear.abs().amax(1, keepdim=True).clamp(min=tiny)
    # In logarithms: at `high` nothing survives, at `low` practically everything does.
    low, high = (top * 1e-8).log(), top.log()
    weights = torch.zeros_like(linear)
    chosen = _entry_order(gram, linear, weights)
    for _ in range(stages):
        middle = (low + high) / 2
        weights = _fista(gram, linear, middle.exp(), weights, step, iterations)
        few = ((weights != 0).sum(1) <= keep).unsqueeze(1)
        chosen = torch.where(few, _entry_order(gram, linear, weights), chosen)
        low, high = torch.where(few, low, middle), torch.where(few, middle, high)
    return rpp(chosen, keep)


def _entry_order(gram: Tensor, linear: Tensor, weights: Tensor) -> Tensor:
    """Scores (B, P): survivors first, then the others by how near they are to entering."""
    correlation = (linear - (gram @ weights.unsqueeze(-1)).squeeze(-1)).abs()
    nearness = correlation / correlation.amax(1, keepdim=True).clamp(min=torch.finfo().tiny)
    return torch.where(weights != 0, 2.0, nearness).to(gram.dtype)


def _fista(
    gram: Tensor, linear: Tensor, alpha: Tensor, start: Tensor, step: Tensor, iterations: int
) -> Tensor:
    weights, ahead, momentum = start, start, 1.0
    for _ in range(iterations):
        gradient = (gram @ ahead.unsqueeze(-1)).squeeze(-1) - linear
        moved = ahead - step * gradient
        new = moved.sign() * (moved.abs() - step * alpha).clamp(min=0)
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / next_momentum * (new - weights)
        weights, momentum = new, next_momentum
    return weights
