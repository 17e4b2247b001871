"""A small stand-in for a large refit problem: a few directions per group instead of all its rows.

When group h is pruned, the refit moves the weights of group g by A_gh A_hh^-1 V_h (A = H^-1, V the
dense solution). These responses to all single removals, with V_g itself, span nearly all that the
refit of g will ever need. Each problem keeps the `rank` strongest directions per group, measured in
the metric A_gg^-1 in which pruning costs are counted, and its normal equations shrink from P * d
to P * rank rows. Masks are chosen there; losses and weights are always solved in full.

Source: our own; a Galerkin projection as in reduced-basis methods.
"""

from dataclasses import replace

import torch
from torch import Tensor

from crosspruner.solver.factor import cholesky
from crosspruner.solver.full_float32 import full_float32
from crosspruner.solver.refit import CHUNK_ENTRIES, RefitProblem

LEAST_PIVOT = 0.95
"""Of a stand-in's Cholesky factor, where 1 is the least that is exact: see `_holds`."""


def condense_targets(problem: RefitProblem, most: int) -> RefitProblem:
    """Turn a problem's outputs until few of them carry nearly all energy, and keep those.

    Any rotation of the outputs leaves the loss of every mask as it is; dropping outputs leaves out
    what they would add. Linear layers put 100 and more outputs under one mask.

    Args:
        problem: of n outputs.
        most: outputs to keep, >= 1; n or more leaves the problem as it is.

    Returns:
        The problem of min(n, most) outputs; its losses are upper bounds of the true ones.
    """
    if problem.target.shape[2] <= most:
        return problem
    weights = problem.inverse_times(problem.target)
    energy = problem.target.mT @ weights
    main = torch.linalg.eigh((energy + energy.mT) / 2).eigenvectors[:, :, -most:]
    return replace(problem, target=problem.target @ main).sharing(problem)


def reduce_problem(problem: RefitProblem, rank: int) -> RefitProblem:
    """Project a refit problem with a shared moment onto `rank` directions per group.

    Args:
        problem: moment (D, D), target (B, D, n).
        rank: directions per group, 1..d.

    Returns:
        the projected problem: moment (B, P * rank, P * rank), target (B, P * rank, n); the loss of
        a mask there is an upper bound of its true loss, up to the digits of float32.
    """
    made = _stand_in(problem, rank, torch.float32) or _stand_in(problem, rank, torch.float64)
    assert made is not None
    return RefitProblem(*made, problem.constant, problem.num_groups)


@full_float32()
def _stand_in(problem: RefitProblem, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Moment and target of the stand-in (float64), by directions and products in `dtype`.

    A stand-in only has to order masks, and float32 takes a third less time. None where the moment
    is too close to singular for it.
    """
    groups, height = problem.num_groups, problem.group_size
    inverse = problem.inverse
    every = torch.arange(groups, device=inverse.device)
    by_group = inverse.view(groups, height, groups, height)
    metric = torch.cholesky_inverse(cholesky(by_group[every, :, every]))
    single = dtype == torch.float32
    if single and bool(torch.linalg.cholesky_ex(metric.float()).info.any()):
        return None
    # Sketches are drawn from a generator of their own: the stand-in is a function of the problem.
    generator = torch.Generator(inverse.device).manual_seed(0)
    num_responses = groups * problem.target.shape[2]
    # More directions than responses: these, and random ones beside them.
    shape = (num_responses, rank) if rank < num_responses else (height, rank - num_responses)
    sketch = torch.randn(shape, generator=generator, dtype=inverse.dtype, device=inverse.device)
    entries = problem.target.shape[1] * (num_responses + groups * rank)
    chunk = max(1, CHUNK_ENTRIES // entries)
    shared = (by_group.to(dtype), metric.to(dtype), sketch.to(dtype))
    seen = problem.moment.to(dtype) if problem.patches is None else problem.patches.to(dtype)
    parts = []
    for first in range(0, problem.num_problems, chunk):
        part = _reduce(problem.rows(slice(first, first + chunk)), seen, *shared, rank)
        if single and not _holds(part[0]):
            return None
        parts.append(part)
    moment, target = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return moment, target


def _holds(moment: Tensor) -> bool:
    """Whether the digits of float32 were enough for the stand-in's moment.

    The directions of a group are orthonormal in what is left of its moment once all other groups
    have explained theirs, so no pivot of an exact factor is below 1.
    """
    factor, failed = torch.linalg.cholesky_ex(moment)
    pivots = factor.diagonal(dim1=1, dim2=2)
    return not bool(failed.any()) and bool((pivots > LEAST_PIVOT).all())


def _reduce(
    problem: RefitProblem,
    seen: Tensor,
    inverse: Tensor,
    metric: Tensor,
    sketch: Tensor,
    rank: int,
) -> tuple[Tensor, Tensor]:
    groups, height = problem.num_groups, problem.group_size
    batch = problem.num_problems
    weights = problem.inverse_times(problem.target).unflatten(1, (groups, height)).to(metric)
    basis = _basis(_responses(inverse, _per_group(metric, weights)), metric, sketch, rank)

    moment = _projected(problem, seen, basis).reshape(batch, groups * rank, groups * rank)
    target = basis.mT.double() @ problem.target.unflatten(1, (groups, height))
    return (moment + moment.mT).double() / 2, target.flatten(1, 2)


def _projected(problem: RefitProblem, seen: Tensor, basis: Tensor) -> Tensor:
    """(B, P, rank, P, rank) the shared moment between the directions (B, P, d, rank) of groups.

    Args:
        problem: whose moment it is.
        seen: its moment, or its patches where it has some, of the dtype of the directions.
        basis: the directions.
    """
    batch, groups, height, rank = basis.shape
    if problem.patches is None:
        by_group = seen.view(groups, height, groups, height)
        # (B, P, d, P, rank): the moment times every group's basis.
        half = torch.einsum("gxhy,bhyr->bgxhr", by_group, basis)
        return torch.einsum("bgxs,bgxhr->bgshr", basis, half)
    inputs = seen.unflatten(1, (groups, height))
    projected = torch.einsum("ngx,bgxr->bgrn", inputs, basis).flatten(1, 2)
    moment = (projected @ projected.mT).view(batch, groups, rank, groups, rank) / len(inputs)
    every = torch.arange(groups, device=basis.device)
    moment[:, every, :, every] += problem.ridge * (basis.mT @ basis).transpose(0, 1)
    return moment


def _responses(inverse: Tensor, scaled: Tensor) -> Tensor:
    """How each group answers each removal: (B, P, d, P * n) from A_hh^-1 V_h (B, P, d, n)."""
    responses = torch.einsum("gxhy,bhyn->bgxhn", inverse, scaled)
    return responses.flatten(3)


def _basis(responses: Tensor, metric: Tensor, sketch: Tensor, rank: int) -> Tensor:
    """The strongest directions (B, P, d, rank) of the responses, orthonormal in the metric."""
    factor = cholesky(metric)
    space = _per_group(factor.mT, responses)
    if rank < space.shape[3]:
        tall, space = space, space @ sketch
        # Two rounds of subspace iteration find the leading space well enough at any spectrum.
        for _ in range(2):
            space = torch.linalg.qr(space).Q
            space = tall @ (tall.mT @ space)
    elif sketch.shape[1]:
        space = torch.cat([space, sketch.expand(*space.shape[:2], -1, -1)], dim=3)
    space = torch.linalg.qr(space).Q
    columns = space.permute(1, 2, 0, 3)  # (P, d, B, rank): one solve per group for all problems
    solved = torch.linalg.solve_triangular(factor.mT, columns.flatten(2), upper=True)
    return solved.view_as(columns).permute(2, 0, 1, 3).contiguous()


def _per_group(matrix: Tensor, values: Tensor) -> Tensor:
    """matrix (P, d, d) times values (B, P, d, m), without a copy of the matrix for each problem."""
    return torch.einsum("gxy,bgym->bgxm", matrix, values)
