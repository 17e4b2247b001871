"""Greedy backward elimination on the Gram form."""

import torch
from torch import Tensor

from crosspruner.solver.rpp import check_keep


def greedy_elimination(gram: Tensor, linear: Tensor, keep: int | Tensor) -> Tensor:
    """From all groups, prune the one whose loss rises least, one at a time.

    Deterministic, one matrix row per removal: the method to beat for weights that stay fixed.

    Args:
        gram: (B, P, P) float64, symmetric.
        linear: (B, P) float64.
        keep: groups to keep, one int or (B,).

    Returns:
        (B, P) bool, exactly `keep` True per row.
    """
    keep = check_keep(linear, keep)
    mask = torch.ones_like(linear, dtype=torch.bool)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    residual = gram.sum(-1) - linear
    row = torch.arange(len(mask), device=mask.device)
    fewest = int(keep.min()) if len(keep) else 0
    for size in range(mask.shape[1], fewest, -1):
        active = keep < size
        worst = (diagonal - 2 * residual).masked_fill(~mask, torch.inf).argmin(1)
        mask[row[active], worst[active]] = False
        residual = residual - gram[row, worst] * active.unsqueeze(1)
    return mask
