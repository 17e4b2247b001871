"""What is done with a symmetric matrix that all problems of a batch share."""

import torch
from torch import Tensor


def diagonal_blocks(matrix: Tensor, groups: int) -> Tensor:
    """(P, d, d) the blocks on the diagonal of a matrix (P * d, P * d)."""
    every = torch.arange(groups, device=matrix.device)
    return matrix.view(groups, -1, groups, len(matrix) // groups)[every, :, every]


def times(matrix: Tensor, columns: Tensor) -> Tensor:
    """Symmetric (D, D) or (B, D, D) times columns (B, D, n), one product where it is shared.

    Broadcasting would copy a shared matrix for every problem.
    """
    if matrix.ndim == 3:
        return matrix @ columns
    # As rows from the left: with few columns that is several times faster on some processors.
    product = columns.mT.flatten(0, 1) @ matrix
    return product.unflatten(0, (len(columns), columns.shape[2])).mT
