"""How large a stand-in the masks of a layer are searched and judged on.

Judging a layer's groups, the elimination that a search starts with, its swaps, and the exchanges
between rows each cost about one full elimination of every problem: 2 (P * rank)^3 operations, and
P^2 looks at a small block, which take far longer than their operations do. A stand-in has as many
directions per group as these passes can afford, and all of them share it.
"""

import torch
from torch import Tensor

from crosspruner.solver import polish
from crosspruner.solver.reduce import condense_targets, reduce_problem
from crosspruner.solver.refit import RefitProblem

FLOPS = 1e11
"""Operations that choosing the masks of one layer may take: some seconds."""

POLISHED = 4
"""Where the masks are swapped on the problem itself in the end, one in so many of them does."""

LOOK = 1.5e4
"""Operations that take as long as a look at a block, for each of its rows."""

SOLVING = 5e10
"""Operations that solving the masks of several runs in full may take."""

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
    """Directions per group, 1..d, that the passes and one LGD run can have within `FLOPS`, or its
    part where the masks are polished."""
    ranks = torch.arange(1, problem.group_size + 1, dtype=torch.float64)
    passes = (PASSES + 1) * max(1, problem.num_problems)
    operations = passes * _one_pass(problem.num_groups, ranks)
    rank = int((operations <= FLOPS).sum())
    if rank < problem.group_size and polish.affordable(problem):
        rank = int((POLISHED * operations <= FLOPS).sum())
    # Below this the stand-in no longer holds the weights themselves and their first responses.
    outputs = problem.target.shape[2]
    rank = max(rank, 2 * outputs, 4)
    if rank < problem.group_size:  # further directions would be random
        rank = min(rank, 2 * problem.num_groups * outputs)
    room = int((MOST_ENTRIES / max(1, problem.num_problems)) ** 0.5 / problem.num_groups)
    return max(1, min(problem.group_size, rank, room))


def affordable_restarts(problem: RefitProblem, restarts: int, polished: bool = False) -> int:
    """LGD runs of a search on a stand-in, at least one of those asked for.

    Args:
        problem: the stand-in.
        restarts: those asked for.
        polished: whether every run's mask is swapped on the problem itself in the end.
    """
    size = torch.tensor(float(problem.group_size))
    one = max(1, problem.num_problems) * float(_one_pass(problem.num_groups, size))
    allowed = FLOPS / POLISHED if polished else FLOPS
    return min(restarts, max(1, int(allowed / one) - PASSES))


def _one_pass(groups: int, ranks: Tensor) -> Tensor:
    """Operations of one pass over one problem, for each number of directions per group."""
    return 2 * (groups * ranks) ** 3 + groups**2 * LOOK * ranks
