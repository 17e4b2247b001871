"""How large a stand-in the masks of a layer are searched and judged on.

Judging a layer's groups, the elimination that a search starts with, its swaps, and the exchanges
between rows each cost about one full elimination of every problem, 2 (P * rank)^3 operations. A
stand-in has as many directions per group as these passes can afford, and all of them share it.
"""

from crosspruner.solver.reduce import condense_targets, reduce_problem
from crosspruner.solver.refit import RefitProblem

FLOPS = 5e10
"""Operations that choosing the masks of one layer may take: some seconds on one core."""

PASSES = 5
"""Passes over a layer besides its LGD runs."""

MOST_ENTRIES = 2**28
"""The moments of all stand-ins of a layer hold at most this many entries (float64: 2 GB)."""

MOST_TARGETS = 16
"""Outputs of a problem that are looked at; more are condensed to their main directions."""


def stand_in_of(problem: RefitProblem) -> RefitProblem:
    """The problem itself, or what stands in for it where it is too large.

    All directions come before LGD runs: on layers of trained networks a stand-in of half the
    directions costs more than four runs win (docs/solver.md).
    """
    condensed = condense_targets(problem, MOST_TARGETS)
    return reduced_to(condensed, affordable_rank(condensed))


def reduced_to(problem: RefitProblem, rank: int) -> RefitProblem:
    """A stand-in of `rank` directions per group, or the problem itself if it has no more rows."""
    condensed = condense_targets(problem, MOST_TARGETS)
    return condensed if rank >= condensed.group_size else reduce_problem(condensed, rank)


def affordable_rank(problem: RefitProblem) -> int:
    """Directions per group, 1..d, that the passes and one LGD run can have within `FLOPS`."""
    rank = int((_flops_of_each(problem) / (PASSES + 1)) ** (1 / 3) / problem.num_groups)
    # Below this the stand-in no longer holds the weights themselves and their first responses.
    rank = max(rank, 2 * problem.target.shape[2], 4)
    room = int((MOST_ENTRIES / max(1, problem.num_problems)) ** 0.5 / problem.num_groups)
    return max(1, min(problem.group_size, rank, room))


def affordable_restarts(problem: RefitProblem, restarts: int) -> int:
    """LGD runs of a search on a stand-in, at least one of those asked for."""
    rows = problem.num_groups * problem.group_size
    affordable = int(_flops_of_each(problem) / rows**3) - PASSES
    return min(restarts, max(1, affordable))


def _flops_of_each(problem: RefitProblem) -> float:
    """What each problem may have, in units of two operations."""
    return FLOPS / (2 * max(1, problem.num_problems))
