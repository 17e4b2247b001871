"""A moment as a few leading directions and the blocks of what is left: H = E + U'U.

Source: Nystroem approximation with two products (Halko, Martinsson and Tropp, SIAM Review 2011).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosspruner.solver.full_float32 import full_float32
from crosspruner.solver.shared_matrix import diagonal_blocks

MOST_DIRECTIONS = 256
"""Of U: more would save fewer steps than their systems cost."""

# Of the moment's mean diagonal, on that of the blocks of E.
_LEAST_REST = 1e-4


def directions(rows: int) -> int:
    """k for a moment of so many rows."""
    return max(1, min(MOST_DIRECTIONS, rows // 8))


@dataclass(frozen=True)
class Splitting:
    """H = E + U'U, as far as the preconditioner knows it. All float32."""

    moment: Tensor
    """(D, D) H."""
    inverses: Tensor
    """(P, d, d) the inverses of the blocks E_gg."""
    leading: Tensor
    """(k, D) U."""
    solved: Tensor
    """(k, D) U_g E_gg^-1 of each group."""
    products: Tensor
    """(P, k * k) U_g E_gg^-1 U_g' of each group."""

    @classmethod
    @full_float32()
    def of(cls, moment: Tensor, groups: int) -> "Splitting | None":
        """Split a moment (D, D), float64; None where it is too close to singular for float32."""
        rounded = moment.float()
        few = directions(len(moment))
        generator = torch.Generator(moment.device).manual_seed(0)
        sketch = torch.randn(
            len(moment), few, generator=generator, dtype=rounded.dtype, device=moment.device
        )
        sketch = torch.linalg.qr(rounded @ sketch).Q
        image = (rounded @ sketch).double()
        core = sketch.double().T @ image
        # What rounding may have put below zero: then U'U still stays below H.
        core.diagonal().add_(torch.finfo(rounded.dtype).eps * core.diagonal().sum())
        factor, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
        if bool(failed):
            return None
        leading = torch.linalg.solve_triangular(factor, image.T, upper=False)
        by_group = leading.unflatten(1, (groups, -1)).transpose(0, 1)  # (P, k, d)
        rest = diagonal_blocks(moment, groups) - by_group.mT @ by_group
        # Where U tells all of a group, float32 must not be asked for what is left of it.
        rest.diagonal(dim1=1, dim2=2).add_(_LEAST_REST * moment.diagonal().mean())
        rest, failed = torch.linalg.cholesky_ex(rest)
        if bool(failed.any()):
            return None
        inverses = torch.cholesky_inverse(rest)
        solved = by_group @ inverses
        products = (solved @ by_group.mT).flatten(1)
        return cls(
            *(rounded, inverses.float(), leading.float()),
            *(solved.transpose(0, 1).flatten(1).float(), products.float()),
        )
