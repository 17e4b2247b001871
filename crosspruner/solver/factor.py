"""Cholesky factors that say what to do where there are none."""

import torch
from torch import Tensor

from crosspruner.errors import SolverError


def cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factors, or a SolverError that says what to do about a singular matrix."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        raise SolverError(
            "the layer's moments are too close to singular for the refit; raise damping"
        )
    return factor
