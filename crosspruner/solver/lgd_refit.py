"""LGD with RPP on the refitted loss: masks chosen for the weights they will have after the refit.

Between binary masks the refitted loss has no gradient, only exact differences: what pruning a
kept group would cost and what reviving a pruned one would gain (`PivotTable.scores`). They are
what the dense state follows:

    d <- d - eta * (d - scores(beta)),    beta = RPP(d)

so d averages the worth of every group over the masks visited, and RPP draws the next one from it.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver import polish
from crosspruner.solver.exhaustive import MAX_FLOPS, best_of_all_refit, trial_flops
from crosspruner.solver.pivot import PivotTable, batch_parts, on_a_table
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.rpp import check_keep, rpp
from crosspruner.solver.side_by_side import side_by_side
from crosspruner.solver.stand_in import SOLVING, affordable_restarts, reduced_to, stand_in_of

STEP = 0.3
"""eta: the share of the present scores in the state."""


def lgd_rpp_refit(
    problem: RefitProblem,
    keep: int | Tensor,
    steps: int = 3,
    relax: float = 1.0,
    restarts: int = 4,
    swaps: bool = True,
    generator: torch.Generator | None = None,
    rank: int | None = None,
    exact: bool = True,
    stand_in: RefitProblem | None = None,
) -> Tensor:
    """Choose which groups each problem keeps so that its refitted outputs change least.

    Args:
        problem: the normal equations of B problems with P groups of d rows.
        keep: groups to keep, one int or (B,) integers in 0..P.
        steps: LGD steps of every restart, >= 0.
        relax: relaxation of the first projection, >= 0; it falls in equal parts from one to the
            next, to relax / (steps + 1) in the last one.
        restarts: LGD runs beside the elimination that the search starts with, >= 0; at least one,
            but not all of them, where more would go beyond `stand_in.FLOPS`.
        swaps: end every run by swaps judged by the refitted loss.
        generator: source of the draws, on the problem's device. None: a new one with seed 0.
        rank: directions per group of the stand-in that large problems are searched on
            (`reduce_problem`); d or more searches the problem itself. None: as many as are
            affordable (`stand_in_of`).
        exact: try all masks where that is cheap (`exhaustive`).
        stand_in: what to search on instead of `problem`, problem by problem; for who has it
            (`LayerProblem.stand_in`). None: made here.

    Returns:
        (B, P) bool, exactly `keep` True per row: the best mask of all where all were tried, else of
        all runs. Where that is affordable they swap once more on the problem itself (`polish`) or
        are solved in full, else the stand-in tells which is best.

    Raises:
        SolverError: an argument out of range, or moments too close to singular.

    Source: LGD and RPP of Liang et al., IEEE Access 2018, carried over to the refitted loss: ours.
    """
    if steps < 0 or restarts < 0 or not 0 <= relax < math.inf or (rank is not None and rank < 1):
        raise SolverError(
            "lgd_rpp with refit needs steps >= 0, restarts >= 0, a finite relax >= 0 and rank >= 1"
            f" or None; got steps={steps}, restarts={restarts}, relax={relax}, rank={rank}"
        )
    keep = check_keep(problem.target.new_empty(problem.num_problems, problem.num_groups), keep)
    if generator is None:
        generator = torch.Generator(problem.target.device).manual_seed(0)
    chosen = torch.zeros(
        problem.num_problems, problem.num_groups, dtype=torch.bool, device=problem.target.device
    )
    search = torch.ones_like(keep, dtype=torch.bool)
    allowed = MAX_FLOPS if exact and problem.shared else 0.0
    for number in keep.unique().tolist():
        rows = (keep == number).nonzero().squeeze(1)
        flops = trial_flops(problem.rows(rows), number)
        if flops <= allowed:
            chosen[rows] = best_of_all_refit(problem.rows(rows), number)
            search[rows] = False
            allowed -= flops
    left = search.nonzero().squeeze(1)
    if len(left):
        how = _Runs(steps, relax, restarts, swaps)
        if stand_in is None:
            whole = problem.rows(left)
            stand_in = stand_in_of(whole) if rank is None else reduced_to(whole, rank)
        else:
            stand_in = stand_in.rows(left)
        chosen[left] = _search(problem.rows(left), stand_in, keep[left], how, generator)
    return chosen


@dataclass(frozen=True)
class _Runs:
    """The elimination and the LGD runs that a search makes, see `lgd_rpp_refit`."""

    steps: int
    relax: float
    restarts: int
    swaps: bool
    thorough: bool = True
    """Try all pairs in the end, not only those of a shortlist."""

    def on(
        self, table: PivotTable, keep: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The masks (1 + restarts, B, P) that a fresh table ends at, and their losses."""
        worth = table.scores()
        table.eliminate(keep)
        masks, losses = [self._finish(table)], [table.loss.clone()]
        for _ in range(self.restarts):
            _descend(table, worth, keep, self.steps, self.relax, generator)
            masks.append(self._finish(table))
            losses.append(table.loss.clone())
        return torch.stack(masks), torch.stack(losses)

    def _finish(self, table: PivotTable) -> Tensor:
        if self.swaps:
            table.descend(thorough=self.thorough)
        return table.mask.clone()


def _search(
    problem: RefitProblem,
    stand_in: RefitProblem,
    keep: Tensor,
    how: _Runs,
    generator: torch.Generator,
) -> Tensor:
    """An elimination and LGD runs of every problem; the best mask of each."""
    reduced = stand_in.group_size < problem.group_size
    polished = how.swaps and reduced and polish.affordable(problem)
    restarts = affordable_restarts(stand_in, how.restarts, polished)
    # What all pairs find that a shortlist does not is below what a stand-in tells.
    how = replace(how, restarts=restarts, thorough=not reduced)
    parts, device = batch_parts(stand_in), stand_in.target.device
    seeds = torch.randint(2**62, (len(parts),), generator=generator, device=device).tolist()

    def runs_of(index: int) -> tuple[Tensor, Tensor]:
        def search(table: PivotTable) -> tuple[Tensor, Tensor]:
            own = torch.Generator(device).manual_seed(seeds[index])
            return how.on(table, keep[parts[index]], own)

        return on_a_table(stand_in.rows(parts[index]), search)

    found = side_by_side(runs_of, range(len(parts)), device)
    runs, losses = (torch.cat(each, 1) for each in zip(*found, strict=True))
    if polished:
        return polish.best_after_swaps(problem, runs)
    if solve_flops(problem, keep) * len(runs) <= SOLVING:
        return _best(problem, runs)
    first = losses.argmin(0)  # by the stand-in
    return runs[first, torch.arange(len(keep), device=keep.device)]


def solve_flops(problem: RefitProblem, keep: Tensor) -> float:
    """Operations of refitting that many groups (b,) of each problem in full."""
    rows = (keep * problem.group_size).double()
    flops = rows**3 / 3
    if problem.few is not None:
        few = flops.new_tensor(problem.few.flops())
        flops = torch.where(rows > problem.few.number, few, flops)
    return float(flops.sum())


def _descend(
    table: PivotTable,
    state: Tensor,
    keep: Tensor,
    steps: int,
    relax: float,
    generator: torch.Generator,
) -> None:
    """One LGD run from a dense state (B, P); leaves the table at the best mask of the run."""
    best, best_loss = table.mask.clone(), torch.full_like(table.loss, torch.inf)
    for step in range(steps + 1):
        # Step 1: beta = RPP(d), relaxed less and less.
        table.move_to(rpp(state, keep, relax * (1 - step / (steps + 1)), generator))
        # Step 2: remember the best beta; move the dense d towards the scores at the sparse one.
        better = table.loss < best_loss
        best_loss = torch.where(better, table.loss, best_loss)
        best = torch.where(better.unsqueeze(1), table.mask, best)
        state = state - STEP * (state - table.scores())
    table.move_to(best)


def _best(problem: RefitProblem, runs: Tensor) -> Tensor:
    """Of several masks per problem (R, B, P) the one of least refitted loss. (B, P)"""
    best, best_loss = runs[0].clone(), problem.solve(runs[0])[1]
    for mask in runs[1:]:
        # Most runs end at the same mask: solve only those that do not.
        new = (mask ^ best).any(1).nonzero().squeeze(1)
        if not len(new):
            continue
        loss = problem.rows(new).solve(mask[new])[1]
        lower = loss < best_loss[new]
        best_loss[new[lower]] = loss[lower]
        best[new[lower]] = mask[new[lower]]
    return best
