"""The last swaps of a search, on the problem itself instead of its stand-in.

A stand-in orders masks well but not to the last per mille. Where problems are few their own pivot
tables can be paid for: the masks that were found on the stand-in are moved to there, and swap until
nothing helps any more. Then the stand-in need not be as good, and its directions are fewer.
"""

from functools import partial

import torch
from torch import Tensor

from crosspruner.solver.pivot import PivotTable, batch_parts, on_a_table
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.side_by_side import side_by_side

FLOPS = 1.5e12
"""Operations that the pivots of one layer may take: some seconds."""

SWAPS = 4
"""That are reckoned with per problem, for the masks of all runs together."""


def affordable(problem: RefitProblem) -> bool:
    """Whether the problem's own tables can be paid for, whatever its masks keep.

    Wide layers of few patches, whose moment is not even made, have none.
    """
    if problem.patches is not None:
        return False
    rows, groups = problem.target.shape[1], problem.num_groups
    pivot = 2 * rows**2 * problem.group_size
    return problem.num_problems * pivot * (groups / 2 + 2 * SWAPS) <= FLOPS


def best_after_swaps(problem: RefitProblem, runs: Tensor) -> Tensor:
    """Let several masks per problem swap on the problem itself; the best of each problem.

    Args:
        problem: B problems, see `affordable`.
        runs: (R, B, P) bool; those of a problem keep equally many groups.

    Returns:
        (B, P) bool, which keep as many. None of them has a greater loss than the first run.

    Raises:
        SolverError: the moment is too close to singular.
    """
    parts = batch_parts(problem)

    def best_of(part: slice) -> Tensor:
        return on_a_table(problem.rows(part), partial(_descend, runs=runs[:, part]))

    return torch.cat(side_by_side(best_of, parts, runs.device))


def _descend(table: PivotTable, runs: Tensor) -> Tensor:
    best, least = runs[0].clone(), torch.full_like(table.loss, torch.inf)
    for mask in runs:
        table.move_to(mask)
        table.descend(thorough=False)  # all pairs take longer than what they win is worth
        better = table.loss < least
        best = torch.where(better.unsqueeze(1), table.mask, best)
        least = torch.where(better, table.loss, least)
    return best
