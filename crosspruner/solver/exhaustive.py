"""The exact optimum of small problems: try every mask."""

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from crosspruner.solver.swap import gram_loss

MAX_MASKS = 4096
"""Problems of at most this many masks are solved by trying all of them."""

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
