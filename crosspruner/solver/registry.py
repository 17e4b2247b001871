"""The solvers by name: what `solver=` in the config and in `cp.prune` refers to.

    name        chooses by                                             needs
    random      an even draw                                           -
    magnitude   weight norm of the groups                              norms
    taylor      loss change of removing one group alone                (saliency)
    lasso       survivors of an L1 penalty                             gram
    greedy      one removal at a time, then pairwise swaps             gram
    lgd_hard    LGD with the plain projection, one start, no swaps     gram
    lgd_rpp     LGD with RPP, restarts and swaps                       gram
    obs_group   elimination by refitted loss, then local search        refit

With `refit=True` greedy and lgd_rpp choose for the refitted weights too, and need refit.
Each takes `(problem, keep, generator)` and returns a (B, P) mask with exactly `keep` True per row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.baselines import magnitude, random_groups, taylor
from crosspruner.solver.greedy import greedy_elimination
from crosspruner.solver.lasso import lasso_path
from crosspruner.solver.lgd import check_problem, lgd_rpp
from crosspruner.solver.lgd_refit import lgd_rpp_refit
from crosspruner.solver.obs import obs_group
from crosspruner.solver.problem import LayerProblem
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.rpp import check_keep
from crosspruner.solver.swap import swap_descent


def choose_mask(
    problem: LayerProblem,
    keep: int | Tensor,
    solver: str = "lgd_rpp",
    generator: torch.Generator | None = None,
    refit: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Solve a layer problem with a solver named as in the table above.

    Args:
        problem: the layer's moments and norms.
        keep: groups to keep, one int or (B,) integers in 0..P.
        solver: a key of `SOLVERS`.
        generator: source of all randomness. None: a new one with seed 0.
        refit: the kept weights will be refitted, so choose for that where the solver can.
        options: further keyword arguments of that solver, such as `restarts` of `lgd_rpp`.

    Returns:
        (B, P) bool, exactly `keep` True per row.

    Raises:
        SolverError: unknown solver or option, or the problem lacks what the solver needs.
    """
    if solver not in SOLVERS:
        raise SolverError(f"unknown solver {solver!r}; choose one of: {', '.join(SOLVERS)}")
    keep = check_keep(problem.linear, keep)
    if generator is None:
        generator = torch.Generator(problem.linear.device).manual_seed(0)
    function = REFIT_SOLVERS.get(solver, SOLVERS[solver]) if refit else SOLVERS[solver]
    try:
        return function(problem, keep, generator, **(options or {}))
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise SolverError(f"solver {solver}: {error}; see its documentation") from error


def _greedy(
    problem: LayerProblem, keep: Tensor, generator: torch.Generator, swaps: bool = True
) -> Tensor:
    gram, keep, linear = check_problem(problem.gram, keep, problem.linear)
    mask = greedy_elimination(gram, linear, keep)
    return swap_descent(gram, linear, mask) if swaps else mask


def _lasso(
    problem: LayerProblem,
    keep: Tensor,
    generator: torch.Generator,
    stages: int = 20,
    iterations: int = 100,
) -> Tensor:
    gram, keep, linear = check_problem(problem.gram, keep, problem.linear)
    return lasso_path(gram, linear, keep, stages, iterations)


def _lgd_hard(
    problem: LayerProblem, keep: Tensor, generator: torch.Generator, steps: int = 100
) -> Tensor:
    return lgd_rpp(
        problem.gram,
        keep,
        problem.linear,
        steps,
        relax=0.0,
        restarts=1,
        swaps=False,
        generator=generator,
    )


def _lgd_rpp(
    problem: LayerProblem,
    keep: Tensor,
    generator: torch.Generator,
    steps: int = 100,
    relax: float = 0.5,
    restarts: int = 8,
    swaps: bool = True,
    kicks: int = 8,
) -> Tensor:
    return lgd_rpp(
        problem.gram, keep, problem.linear, steps, relax, restarts, swaps, generator, kicks
    )


def _obs_group(
    problem: LayerProblem,
    keep: Tensor,
    generator: torch.Generator,
    search: bool = True,
    rank: int | None = None,
) -> Tensor:
    return obs_group(_refit_of(problem), keep, search, rank)


def _greedy_refit(
    problem: LayerProblem, keep: Tensor, generator: torch.Generator, swaps: bool = True
) -> Tensor:
    whole, stand_in = _refit_of(problem), problem.stand_in
    return lgd_rpp_refit(
        *(whole, keep), restarts=0, swaps=swaps, generator=generator, exact=False, stand_in=stand_in
    )


def _lgd_rpp_refit(
    problem: LayerProblem,
    keep: Tensor,
    generator: torch.Generator,
    steps: int = 3,
    relax: float = 1.0,
    restarts: int = 4,
    swaps: bool = True,
    rank: int | None = None,
    exact: bool = True,
) -> Tensor:
    whole = _refit_of(problem)
    if exact and problem.every_mask is not None:
        return problem.every_mask.best(keep)
    stand_in = problem.stand_in if rank is None else None
    return lgd_rpp_refit(
        whole, keep, steps, relax, restarts, swaps, generator, rank, exact, stand_in
    )


def _refit_of(problem: LayerProblem) -> RefitProblem:
    if problem.refit is None:
        raise SolverError(
            "choosing for refitted weights needs the layer's moments, which this problem does not"
            " hold; use LayerProblem.from_moments, or refit=false with another solver than"
            " obs_group"
        )
    return problem.refit


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "random": random_groups,
    "magnitude": magnitude,
    "taylor": taylor,
    "lasso": _lasso,
    "greedy": _greedy,
    "lgd_hard": _lgd_hard,
    "lgd_rpp": _lgd_rpp,
    "obs_group": _obs_group,
}

REFIT_SOLVERS: dict[str, Callable[..., Tensor]] = {
    "greedy": _greedy_refit,
    "lgd_rpp": _lgd_rpp_refit,
}
