"""Many systems that are blocks of one matrix, by float32 factors and a step in float64.

A factor in float32 takes half the time and memory of one in float64, and leaves an error of about
the system's condition times 1e-7. One step of refinement, whose residual is taken in float64,
squares it. Systems too close to singular for that are factored in float64.

Source: iterative refinement, Wilkinson 1963; Carson and Higham, SIAM J. Sci. Comput. 2018.
"""

import torch
from torch import Tensor

from crosspruner.solver.factor import cholesky
from crosspruner.solver.full_float32 import full_float32
from crosspruner.solver.shared_matrix import times

LEAST_ROWS = 256
"""Smaller systems are factored in float64 at once: there is little to gain."""

WIDTH = 192
"""Columns of the factors that are made at once."""

MOST_CORRECTION = 1e-4
"""Energy of the refinement, over the solution's, up to which float32 held: the error that it leaves
is then of about the square of this."""


@full_float32()
def solve_blocks(matrix: Tensor, rounded: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """X with matrix[rows, rows] X = target for several sets of rows.

    Args:
        matrix: (D, D) float64, symmetric positive definite.
        rounded: `matrix` in float32.
        rows: (b, s) int64, the rows of each system.
        target: (b, s, n) float64.

    Returns:
        (b, s, n) float64.

    Raises:
        SolverError: a system is too close to singular.
    """
    if rows.shape[1] < LEAST_ROWS:
        return _exactly(matrix, rows, target)
    factors = _Factors(rounded, rows)
    solution = factors.solve(target.float()).double()
    rest = target - _product(matrix, rows, solution)
    step = factors.solve(rest.float()).double()
    energy, corrected = (target * solution).sum((1, 2)), (rest * step).sum((1, 2))
    held = ~factors.failed & (corrected.abs() <= MOST_CORRECTION * energy)
    solution += step
    if not bool(held.all()):
        solution[~held] = _exactly(matrix, rows[~held], target[~held])
    return solution


class _Factors:
    """Cholesky factors of blocks of a matrix, a panel of columns of all of them at a time.

    LAPACK's own would copy every block and clear its upper half, which takes as long again.

    Attributes:
        failed: (b,) bool, the blocks that have none.
    """

    def __init__(self, matrix: Tensor, rows: Tensor) -> None:
        batch, self._size = rows.shape
        # Below the diagonal panels; what is above them is never read.
        self._lower = matrix.new_empty(batch, self._size, self._size)
        self._inverses: list[Tensor] = []
        self.failed = torch.zeros(batch, dtype=torch.bool, device=matrix.device)
        for start, stop in self._panels():
            lower, width = self._lower, stop - start
            panel = matrix[rows[:, start:, None], rows[:, None, start:stop]]
            panel.baddbmm_(lower[:, start:, :start], lower[:, start:stop, :start].mT, alpha=-1)
            factor, info = torch.linalg.cholesky_ex(panel[:, :width])
            self.failed |= info != 0
            one = torch.eye(width, dtype=matrix.dtype, device=matrix.device)
            inverse = torch.linalg.solve_triangular(factor, one.expand_as(factor), upper=False)
            lower[:, stop:, start:stop] = panel[:, width:] @ inverse.mT
            self._inverses.append(inverse)

    def _panels(self) -> list[tuple[int, int]]:
        starts = range(0, self._size, WIDTH)
        return [(start, min(start + WIDTH, self._size)) for start in starts]

    def solve(self, target: Tensor) -> Tensor:
        """Forward and back substitution for targets (b, s, n)."""
        lower, solved = self._lower, torch.empty_like(target)
        panels = list(zip(self._panels(), self._inverses, strict=True))
        for (start, stop), inverse in panels:
            known = lower[:, start:stop, :start] @ solved[:, :start]
            solved[:, start:stop] = inverse @ (target[:, start:stop] - known)
        for (start, stop), inverse in reversed(panels):
            known = lower[:, stop:, start:stop].mT @ solved[:, stop:]
            solved[:, start:stop] = inverse.mT @ (solved[:, start:stop] - known)
        return solved


def _exactly(matrix: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """By factors in float64."""
    return torch.cholesky_solve(target, cholesky(matrix[rows.unsqueeze(2), rows.unsqueeze(1)]))


def _product(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """matrix[rows, rows] columns, by one product with the whole matrix for all systems."""
    batch, _, number = columns.shape
    at = rows.unsqueeze(2).expand_as(columns)
    spread = columns.new_zeros(batch, len(matrix), number).scatter_(1, at, columns)
    return times(matrix, spread).gather(1, at)
