"""Group OBS: prune what the refit can best make up for, update, then search around the result.

The baseline to beat for refitted weights: deterministic, one exact update per removal.
"""

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.pivot import PivotTable, batch_parts
from crosspruner.solver.reduce import reduce_problem
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.rpp import check_keep

FLOPS = 5e12
"""Operations that elimination and search of one layer may take: about a minute on a core."""


def obs_group(
    problem: RefitProblem, keep: int | Tensor, search: bool = True, rank: int | None = None
) -> Tensor:
    """Eliminate groups by refitted loss, then drop and add several at a time while that helps.

    Args:
        problem: the normal equations of B problems with P groups.
        keep: groups to keep, one int or (B,).
        search: the local search after the elimination.
        rank: directions per group, >= 1, of the stand-in that wide layers are judged on
            (`reduce_problem`); d or more judges the problem itself. None: all, or as many as
            `FLOPS` allows: a linear layer of 4,096 inputs and 512 outputs would take half an hour.

    Returns:
        (B, P) bool, exactly `keep` True per row.

    Raises:
        SolverError: an argument out of range, or moments too close to singular.

    Source: Meng, Ibrahim, Behdin, Hazimeh, Ponomareva, Mazumder, ICML 2024 (OSSCAR), on the groups
    of each output; costs tr(W_g' [(H^-1)_gg]^-1 W_g) as in Hassibi and Stork, NeurIPS 1992. The
    first number of exchanges, half of what can be exchanged, is our reading,
    and so is the stand-in.
    """
    if rank is not None and (rank < 1 or not problem.shared):
        raise SolverError(
            f"obs_group needs rank >= 1, and problems that share their moment, or None; got {rank}"
        )
    keep = check_keep(problem.target.new_empty(problem.num_problems, problem.num_groups), keep)
    rank = min(problem.group_size, affordable_rank(problem) if rank is None else rank)
    masks = []
    for part in batch_parts(problem, rank):
        rows = problem.rows(part)
        # Part by part: the stand-ins of all would take gigabytes.
        table = PivotTable(rows if rank == problem.group_size else reduce_problem(rows, rank))
        table.eliminate(keep[part])
        if search:
            _search(table)
        masks.append(table.mask)
    return torch.cat(masks) if masks else torch.zeros(0, problem.num_groups, dtype=torch.bool)


def affordable_rank(problem: RefitProblem) -> int:
    """Directions per group, 1..d, that the elimination and the search can have within `FLOPS`.

    All of them where the problems do not share their moment, which has no stand-in.
    """
    if not problem.shared:
        return problem.group_size
    # An elimination costs about 2 (P * rank)^3 operations per problem, the search twice that.
    rows = (FLOPS / (6 * max(1, problem.num_problems))) ** (1 / 3)
    return min(problem.group_size, max(1, int(rows / max(1, problem.num_groups))))


def _search(table: PivotTable) -> None:
    """Drop the `number` cheapest groups and add as many, one by one; halve `number` when stuck."""
    kept = table.mask.sum(1)
    number = torch.minimum(kept, table.groups - kept) // 2
    number = torch.where((kept > 0) & (kept < table.groups), number.clamp(min=1), 0)
    while number.any():
        best, best_loss = table.mask.clone(), table.loss.clone()
        for fill in (False, True):
            for step in range(int(number.max())):
                rows = (number > step).nonzero().squeeze(1)
                worth, mask = table.scores(rows), table.mask[rows]
                worth = torch.where(mask == fill, -torch.inf, worth if fill else -worth)
                table.toggle(worth.argmax(1), rows)
        better = table.loss < best_loss - 1e-9 * best_loss.abs()
        # A row that gained tries again from where it is; another goes back and moves less.
        table.move_to(torch.where(better.unsqueeze(1), table.mask, best))
        number = torch.where(better, number, number // 2)
