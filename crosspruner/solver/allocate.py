"""How many groups each problem of a layer keeps, when only their total is fixed.

Outputs differ in what they can do without. The loss of every problem at every number of groups
kept (`loss_path`) and one exact knapsack (`allocate`) share a layer's blocks out accordingly.
"""

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.lgd import check_problem
from crosspruner.solver.lgd_refit import affordable_rank
from crosspruner.solver.obs import batch_parts
from crosspruner.solver.pivot import PivotTable
from crosspruner.solver.problem import LayerProblem
from crosspruner.solver.reduce import reduce_problem
from crosspruner.solver.refit import RefitProblem


def loss_path(problem: LayerProblem, refit: bool = False, rank: int | None = None) -> Tensor:
    """Loss of every problem along a greedy elimination from all groups to none.

    Args:
        problem: B problems of P groups.
        refit: losses with refitted weights (needs `problem.refit`), else with fixed weights.
        rank: directions per group of the stand-in for large refits, see `lgd_rpp_refit`.

    Returns:
        (B, P + 1) float64: entry k is the loss with k groups kept, its constant included where
        the problem knows it (`energy`, always with refit).

    Raises:
        SolverError: refit without the layer's moments.
    """
    if not refit:
        return _fixed_path(problem)
    if problem.refit is None:
        raise SolverError("loss_path with refit needs the layer's moments; use from_moments")
    height = problem.refit.group_size
    rank = affordable_rank(problem.refit, restarts=0) if rank is None else rank
    stand_in = problem.refit if rank >= height else reduce_problem(problem.refit, rank)
    parts = [_refit_path(stand_in.rows(part)) for part in batch_parts(stand_in)]
    return torch.cat(parts) if parts else problem.gram.new_zeros(0, problem.num_groups + 1)


def allocate(losses: Tensor, total: int, least: int = 1) -> Tensor:
    """Share `total` groups among the problems so that the sum of their losses is least.

    Args:
        losses: (B, P + 1), entry k the loss of a problem with k groups kept, see `loss_path`.
        total: groups to keep in all, B * least .. B * P.
        least: groups every problem keeps at least, 0..P.

    Returns:
        (B,) int64 groups to keep, with sum exactly `total`.

    Raises:
        SolverError: `total` or `least` out of range.
    """
    problems, groups = losses.shape[0], losses.shape[1] - 1
    if not (0 <= least <= groups and problems * least <= total <= problems * groups):
        raise SolverError(
            f"{problems} problems that keep {least}..{groups} groups each cannot keep {total} in"
            f" all; total must lie in {problems * least}..{problems * groups}"
        )
    # cost[t]: least loss of the problems so far with t groups above the minimum.
    free, options = total - problems * least, groups - least + 1
    cost = losses.new_full((free + 1,), torch.inf)
    cost[0] = 0
    choices = []
    for row in losses[:, least:]:
        padded = torch.cat([cost.new_full((options - 1,), torch.inf), cost])
        # Entry (t, j) keeps options - 1 - j groups of this problem, t - (options - 1 - j) before.
        candidates = padded.unfold(0, options, 1) + row.flip(0)
        cost, choice = candidates.min(1)
        choices.append(options - 1 - choice)
    keep = torch.full((problems,), least, dtype=torch.int64, device=losses.device)
    left = free
    for index in range(problems - 1, -1, -1):
        extra = int(choices[index][left])
        keep[index] += extra
        left -= extra
    return keep


def _fixed_path(problem: LayerProblem) -> Tensor:
    gram, _, linear = check_problem(problem.gram, 0, problem.linear)
    row = torch.arange(len(gram), device=gram.device)
    mask = torch.ones_like(linear, dtype=torch.bool)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    residual = gram.sum(-1) - linear
    path = [(residual - linear).sum(1)]
    for _ in range(problem.num_groups):
        rise, worst = (diagonal - 2 * residual).masked_fill(~mask, torch.inf).min(1)
        mask[row, worst] = False
        residual = residual - gram[row, worst]
        path.append(path[-1] + rise)
    losses = torch.stack(path[::-1], dim=1)
    return losses if problem.energy is None else losses + problem.energy.to(losses).unsqueeze(1)


def _refit_path(problem: RefitProblem) -> Tensor:
    table = PivotTable(problem)
    path = [table.loss.clone()]
    for number in range(problem.num_groups - 1, -1, -1):
        table.eliminate(torch.full_like(table.loss, number, dtype=torch.int64))
        path.append(table.loss.clone())
    return torch.stack(path[::-1], dim=1)
