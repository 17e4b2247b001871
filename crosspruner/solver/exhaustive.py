"""The exact optimum of small problems: try every mask."""

from collections.abc import Iterator
from itertools import combinations
from math import comb, inf

import torch
from torch import Tensor

from crosspruner.solver.factor import cholesky
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.swap import gram_loss

MAX_WORK = 5e6
"""Problems that take at most this many multiplications each are solved by trying all masks."""

MAX_MASKS = 4096
"""Refitted problems of at most this many masks are, within MAX_FLOPS."""

MAX_FLOPS = 2e10
"""Refitted problems of a layer are solved so as long as it takes at most this many operations."""

FACTORS_TAKE = 4
"""Times as long as a product of as many operations that factors of many masks take, at least."""

# One chunk of the batch holds at most this many losses (float64: 8 MB, about a cache).
_CHUNK_LOSSES = 2**20

# One chunk of refitted problems holds at most this many entries (float64: 128 MB).
_CHUNK_ENTRIES = 2**24


def is_small(groups: int, keep: int) -> bool:
    """Whether all masks of `keep` ones out of `groups` can be tried within MAX_WORK."""
    left, right = groups // 2, groups - groups // 2
    halves = 0.0
    for first, second in _splits(groups, keep):
        halves += comb(left, first) * left**2 + comb(right, second) * right**2
        if halves > MAX_WORK:
            return False
    return halves + comb(groups, keep) * (right + 2) <= MAX_WORK


def best_of_all(gram: Tensor, linear: Tensor, keep: int) -> Tensor:
    """The mask of least loss among all with exactly `keep` ones.

    The groups are cut into two halves, a mask into its parts m and n. Its loss is

        m' G_mm m - 2 h_m' m  +  n' G_nn n - 2 h_n' n  +  2 m' G_mn n

    so the losses of all pairs of parts come from one matrix product of half the depth.

    Args:
        gram: (B, P, P) float64, symmetric. linear: (B, P) float64.
        keep: 0..P, few enough that `is_small`.

    Returns:
        (B, P) bool; of equal losses always the same one.

    Source: the split is that of Horowitz and Sahni, "Computing partitions", JACM 1974.
    """
    batch, groups = linear.shape
    half = groups // 2
    least = linear.new_full((batch,), inf)
    best = torch.zeros_like(linear, dtype=torch.bool)
    for first, second in _splits(groups, keep):
        left = _masks_of(half, first).to(linear)
        right = _masks_of(groups - half, second).to(linear)
        chunk = max(1, _CHUNK_LOSSES // (len(left) * len(right)))
        for start in range(0, batch, chunk):
            part = slice(start, start + chunk)
            g, h = gram[part], linear[part]
            losses = _losses_of_pairs(g, h, left, right)
            # The least of each row first: without its place, that is four times faster.
            loss, row = losses.amin(2).min(1)
            column = losses[torch.arange(len(row), device=row.device), row].argmin(1)
            found = torch.cat([left[row], right[column]], dim=1).bool()
            better = loss < least[part]
            least[part] = torch.where(better, loss, least[part])
            best[part] = torch.where(better.unsqueeze(1), found, best[part])
    return best


def _splits(groups: int, keep: int) -> Iterator[tuple[int, int]]:
    """How many of `keep` ones may lie in the first half of the groups, and how many then do not."""
    half = groups // 2
    for first in range(max(0, keep - (groups - half)), min(half, keep) + 1):
        yield first, keep - first


def _masks_of(groups: int, ones: int) -> Tensor:
    """All masks (N, groups) of so many ones; from the zeros where those are fewer."""
    few = min(ones, groups - ones)
    places = torch.tensor(list(combinations(range(groups), few)))
    masks = torch.zeros(len(places), groups, dtype=torch.bool)
    masks.scatter_(1, places.view(len(places), few).long(), True)
    return masks if few == ones else ~masks


def _losses_of_pairs(gram: Tensor, linear: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(B, M, N) loss of each problem under each pair of a left and a right part of a mask."""
    half, batch = left.shape[1], len(gram)
    own_left = gram_loss(gram[:, :half, :half], linear[:, :half], left.expand(batch, -1, -1))
    own_right = gram_loss(gram[:, half:, half:], linear[:, half:], right.expand(batch, -1, -1))
    # The parts' own losses ride along as two more columns of the product.
    one = linear.new_ones(1)
    rows = (
        2 * left @ gram[:, :half, half:],
        own_left.unsqueeze(2),
        one.expand(batch, len(left), 1),
    )
    columns = (
        right.T.expand(batch, -1, -1),
        one.expand(batch, 1, len(right)),
        own_right.unsqueeze(1),
    )
    return torch.cat(rows, dim=2) @ torch.cat(columns, dim=1)


def trial_flops(problem: RefitProblem, keep: int) -> float:
    """Operations of trying all masks of `keep` groups on problems that share their moment, as many
    as products would take as long for.

    Infinite for more than MAX_MASKS masks: there the number of masks is what takes the time.
    """
    masks = comb(problem.num_groups, keep)
    if masks > MAX_MASKS:
        return inf
    number = problem.num_groups - keep if _by_pruned(problem, keep) else keep
    rows, columns = number * problem.group_size, problem.target.shape[0] * problem.target.shape[2]
    return masks * rows**2 * (FACTORS_TAKE * rows / 3 + columns)


def _by_pruned(problem: RefitProblem, keep: int) -> bool:
    """Whether masks are judged by what the pruned groups cost, the smaller systems then."""
    return problem.patches is None and 2 * keep > problem.num_groups


def best_of_all_refit(problem: RefitProblem, keep: int) -> Tensor:
    """The mask of least refitted loss among all with exactly `keep` ones.

    Args:
        problem: with one moment for all problems.
        keep: 0..P, few enough that `trial_flops` can be paid.

    Returns:
        (B, P) bool; of equal losses the first in lexicographic order of the kept groups.
    """
    masks = masks_of(problem.num_groups, keep).to(problem.target.device)
    return masks[refitted_losses(problem, keep).argmin(1)]


def masks_of(groups: int, keep: int) -> Tensor:
    """(m, P) bool, all masks of `keep` ones in lexicographic order of the kept groups."""
    supports = list(combinations(range(groups), keep))
    kept = torch.tensor(supports, dtype=torch.int64).view(len(supports), keep)
    return torch.zeros(len(supports), groups, dtype=torch.bool).scatter_(1, kept, True)


def refitted_losses(problem: RefitProblem, keep: int) -> Tensor:
    """The refitted loss of every mask with exactly `keep` ones.

    The problems share their moment, so each mask is factored once for all of them: H of the kept
    rows, or H^-1 of the pruned ones if these are fewer.

    Args:
        problem: with one moment for all problems.
        keep: 0..P, few enough that `trial_flops` can be paid.

    Returns:
        (B, m) float64, in the order of `masks_of`.
    """
    groups, height = problem.num_groups, problem.group_size
    batch, _, columns = problem.target.shape
    device = problem.target.device
    by_pruned = _by_pruned(problem, keep)
    # H^-1 goes with the dense weights as H goes with the target.
    sources = problem.inverse_times(problem.target) if by_pruned else problem.target
    targets = sources.transpose(0, 1).flatten(1)  # (D, B * n)
    masks = masks_of(groups, keep).to(device)
    solved = ~masks if by_pruned else masks
    supports = solved.nonzero()[:, 1].view(len(masks), groups - keep if by_pruned else keep)
    size = max(1, supports.shape[1] * height)
    chunk = max(1, _CHUNK_ENTRIES // (2 * size * (size + batch * columns)))
    gains = []
    for part in supports.split(chunk):
        rows = (part.unsqueeze(2) * height + torch.arange(height, device=device)).flatten(1)
        if by_pruned:
            system = problem.inverse[rows.unsqueeze(2), rows.unsqueeze(1)]
        else:
            system = problem.moment_of(rows)
        explained = torch.linalg.solve_triangular(cholesky(system), targets[rows], upper=False)
        gains.append(explained.square().sum(1).unflatten(1, (batch, columns)).sum(2))  # (m, B)
    gain = torch.cat(gains).T
    if by_pruned:  # what is left of that of all groups
        gain = (problem.target * sources).sum((1, 2)).unsqueeze(1) - gain
    return problem.constant.unsqueeze(1) - gain
