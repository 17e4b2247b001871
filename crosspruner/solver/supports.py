"""Refits of many problems under their masks, each by the cheapest exact way, or nearly exact.

Problems that keep equally many groups are factored in one batch: H_SS of the kept rows, H^-1 of the
pruned ones, or a system among the patches. Where supports are many and large, conjugate gradients
take them all at once (`deflated`).
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crosspruner.solver import deflated
from crosspruner.solver.factor import cholesky
from crosspruner.solver.refined import solve_blocks
from crosspruner.solver.splitting import Splitting

if TYPE_CHECKING:
    from crosspruner.solver.refit import RefitProblem

# One chunk of a batch holds at most this many entries (float64: 512 MB).
CHUNK_ENTRIES = 2**26


def solve_supports(problem: "RefitProblem", mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, D, n) and losses (B,) of masks (B, P), see `RefitProblem.solve`."""
    weights = torch.zeros_like(problem.target)
    loss = problem.constant.clone()
    kept = mask.sum(1)
    left = ~_by_steps(problem, mask, weights, loss)
    for number in kept[left].unique().tolist():
        same = (left & (kept == number)).nonzero().squeeze(1)
        by_pruned = problem.shared and problem.few is None and 2 * number > problem.num_groups
        solved = problem.num_groups - number if by_pruned else number
        size = max(1, solved * problem.group_size)
        if problem.few is not None and problem.few.number < size:
            for problems in same.split(problem.few.at_once(problem.target.shape[2])):
                target = problem.target[problems].transpose(0, 1)
                found = problem.few.solve(mask[problems], target)
                weights[problems] = found.transpose(0, 1)
                loss[problems] -= (target * found).sum((0, 2))
            continue
        for problems in same.split(max(1, CHUNK_ENTRIES // (size * size))):
            solve = _remove if by_pruned else _keep
            weights[problems], loss[problems] = solve(problem, problems, mask[problems])
    return weights, loss


def _by_steps(problem: "RefitProblem", mask: Tensor, weights: Tensor, loss: Tensor) -> Tensor:
    """Write what conjugate gradients solve sooner than factors into weights and loss (B,);
    which problems these are (B,)."""
    if not problem.shared or problem.patches is not None:
        return torch.zeros_like(mask[:, 0])
    make = partial(Splitting.of, problem.moment, problem.num_groups)
    split = partial(problem.once, "splitting", make)
    return deflated.solve_into(problem.moment, split, mask, problem.target, weights, loss)


def _keep(problem: "RefitProblem", problems: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """V_S = H_SS^-1 T_S for problems (b,) that keep equally many groups, by mask (b, P)."""
    rows = _rows_of(problem, mask)
    target = problem.target[problems.unsqueeze(1), rows]
    if problem.patches is not None:
        system = problem.moment_of(rows)
        solution = torch.cholesky_solve(target, cholesky(system))
    elif problem.shared:
        rounded = problem.once("moment in float32", problem.moment.float)
        solution = solve_blocks(problem.moment, rounded, rows, target)
    else:
        own = problems.view(-1, 1, 1)
        system = problem.moment[own, rows.unsqueeze(2), rows.unsqueeze(1)]
        solution = torch.cholesky_solve(target, cholesky(system))
    weights = torch.zeros_like(problem.target[problems])
    weights.scatter_(1, rows.unsqueeze(2).expand_as(solution), solution)
    return weights, problem.constant[problems] - (target * solution).sum((1, 2))


def _remove(problem: "RefitProblem", problems: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """V - A_:R A_RR^-1 V_R with A = H^-1 and V = A T, for groups R pruned from all."""
    rows = _rows_of(problem, ~mask)
    dense = problem.inverse_times(problem.target[problems])
    removed = dense.gather(1, rows.unsqueeze(2).expand(-1, -1, dense.shape[2]))
    rounded = problem.once("inverse in float32", problem.inverse.float)
    scaled = solve_blocks(problem.inverse, rounded, rows, removed)
    spread = torch.zeros_like(dense).scatter_(1, rows.unsqueeze(2).expand_as(scaled), scaled)
    weights = dense - problem.inverse_times(spread)
    weights.scatter_(1, rows.unsqueeze(2).expand_as(scaled), 0.0)
    gain = (problem.target[problems] * dense).sum((1, 2)) - (removed * scaled).sum((1, 2))
    return weights, problem.constant[problems] - gain


def _rows_of(problem: "RefitProblem", mask: Tensor) -> Tensor:
    """The rows (b, s) of the groups marked in a mask (b, P) with equally many marks per row."""
    marked = mask.nonzero()[:, 1].view(len(mask), -1)
    within = torch.arange(problem.group_size, device=mask.device)
    return (marked.unsqueeze(2) * problem.group_size + within).flatten(1)
