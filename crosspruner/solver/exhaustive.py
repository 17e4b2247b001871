"""The exact optimum of small problems: try every mask."""

from itertools import combinations
from math import comb, inf

import torch
from torch import Tensor

from crosspruner.solver.refit import RefitProblem, cholesky
from crosspruner.solver.swap import gram_loss

MAX_MASKS = 4096
"""Problems of at most this many masks are solved by trying all of them."""

MAX_FLOPS = 2e11
"""Refitted problems of a layer are solved so as long as it takes at most this many operations."""

# One chunk of the batch holds at most this many entries (float64: 128 MB).
_CHUNK_ENTRIES = 2**24


def is_small(groups: int, keep: int) -> bool:
    """Whether a problem of `groups` has at most MAX_MASKS masks of `keep` ones."""
    return comb(groups, keep) <= MAX_MASKS


def best_of_all(gram: Tensor, linear: Tensor, keep: int) -> Tensor:
    """The mask of least loss among all with exactly `keep` ones.

    Args:
        gram: (B, P, P) float64. linear: (B, P) float64.
        keep: 0..P, few enough that `is_small`.

    Returns:
        (B, P) bool; of equal losses the first in lexicographic order of the kept groups.
    """
    groups = gram.shape[1]
    supports = torch.tensor(list(combinations(range(groups), keep)), device=gram.device)
    masks = torch.zeros(len(supports), groups, dtype=torch.bool, device=gram.device)
    masks.scatter_(1, supports.view(len(supports), keep).long(), True)
    best = []
    chunk = max(1, _CHUNK_ENTRIES // masks.numel())
    for part, part_linear in zip(gram.split(chunk), linear.split(chunk), strict=True):
        losses = gram_loss(part, part_linear, masks.expand(len(part), -1, -1))
        best.append(masks[losses.argmin(1)])
    return torch.cat(best) if best else torch.zeros_like(linear, dtype=torch.bool)


def trial_flops(problem: RefitProblem, keep: int) -> float:
    """Operations of trying all masks of `keep` groups on problems that share their moment.

    Infinite for more than MAX_MASKS masks: there the number of masks is what takes the time.
    """
    masks = comb(problem.num_groups, keep)
    if masks > MAX_MASKS:
        return inf
    rows, columns = keep * problem.group_size, problem.target.shape[0] * problem.target.shape[2]
    return masks * rows**2 * (rows / 3 + columns)


def best_of_all_refit(problem: RefitProblem, keep: int) -> Tensor:
    """The mask of least refitted loss among all with exactly `keep` ones.

    The problems share their moment, so each mask is factored once for all of them.

    Args:
        problem: with one moment for all problems.
        keep: 0..P, few enough that `trial_flops` can be paid.

    Returns:
        (B, P) bool; of equal losses the first in lexicographic order of the kept groups.
    """
    groups, height = problem.num_groups, problem.group_size
    batch, _, columns = problem.target.shape
    device = problem.target.device
    supports = torch.tensor(list(combinations(range(groups), keep)), device=device)
    supports = supports.view(len(supports), keep).long()
    targets = problem.target.transpose(0, 1).flatten(1)  # (D, B * n)
    best_gain = targets.new_full((batch,), -torch.inf)
    best = torch.zeros(batch, dtype=torch.int64, device=device)
    size = max(1, keep * height)
    chunk = max(1, _CHUNK_ENTRIES // (2 * size * (size + batch * columns)))
    for start in range(0, len(supports), chunk):
        part = supports[start : start + chunk]
        rows = (part.unsqueeze(2) * height + torch.arange(height, device=device)).flatten(1)
        factor = cholesky(problem.moment[rows.unsqueeze(2), rows.unsqueeze(1)])
        explained = torch.linalg.solve_triangular(factor, targets[rows], upper=False)
        gain = explained.square().sum(1).unflatten(1, (batch, columns)).sum(2)  # (m, B)
        top, which = gain.max(0)
        better = top > best_gain
        best_gain = torch.where(better, top, best_gain)
        best = torch.where(better, which + start, best)
    mask = torch.zeros(batch, groups, dtype=torch.bool, device=device)
    return mask.scatter_(1, supports[best], True)
