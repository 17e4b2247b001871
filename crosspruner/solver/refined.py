"""Many systems at once, by float32 factors and a step in float64.

A factor in float32 takes half the time and memory of one in float64, and leaves an error of about
the system's condition times 1e-7. One step of refinement, whose residual is taken in float64,
squares it. Systems too close to singular for that are factored in float64.

Source: iterative refinement, Wilkinson 1963; Carson and Higham, SIAM J. Sci. Comput. 2018.
"""

from collections.abc import Callable
from functools import partial

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

    def panel(start: int, stop: int) -> Tensor:
        return rounded[rows[:, start:, None], rows[:, None, start:stop]]

    def whole(which: Tensor) -> Tensor:
        own = rows[which]
        return matrix[own.unsqueeze(2), own.unsqueeze(1)]

    return _refined(target, panel, partial(_product, matrix, rows), whole)


@full_float32()
def solve_systems(systems: Tensor, target: Tensor) -> Tensor:
    """X with systems X = target.

    Args:
        systems: (b, s, s) float64, symmetric positive definite.
        target: (b, s, n) float64.

    Returns:
        (b, s, n) float64.

    Raises:
        SolverError: a system is too close to singular.
    """

    def panel(start: int, stop: int) -> Tensor:
        return systems[:, start:, start:stop].float()

    return _refined(target, panel, systems.matmul, systems.__getitem__)


def _refined(
    target: Tensor,
    panel: Callable[[int, int], Tensor],
    product: Callable[[Tensor], Tensor],
    whole: Callable[[Tensor], Tensor],
) -> Tensor:
    """The solutions (b, s, n) of systems that are made, whole or in panels, where they are needed.

    Args:
        target: (b, s, n) float64.
        panel: columns start..stop of all systems from the row `start` on, float32.
        product: the systems times columns (b, s, n), in float64.
        whole: some of the systems (b,) int64, in float64.

    Raises:
        SolverError: a system is too close to singular.
    """

    def exactly(which: Tensor) -> Tensor:
        return torch.cholesky_solve(target[which], cholesky(whole(which)))

    every = torch.arange(len(target), device=target.device)
    if target.shape[1] < LEAST_ROWS:
        return exactly(every)
    factors = _Factors(panel, *target.shape[:2])
    solution = factors.solve(target.float()).double()
    rest = target - product(solution)
    step = factors.solve(rest.float()).double()
    energy, corrected = (target * solution).sum((1, 2)), (rest * step).sum((1, 2))
    failed = factors.failed | ~(corrected.abs() <= MOST_CORRECTION * energy)
    solution += step
    if bool(failed.any()):
        solution[failed] = exactly(every[failed])
    return solution


class _Factors:
    """Cholesky factors of many systems, a panel of columns of all of them at a time.

    LAPACK's own would copy every system and clear its upper half, which takes as long again.

    Attributes:
        failed: (b,) bool, the systems that have none.
    """

    def __init__(self, panel: Callable[[int, int], Tensor], batch: int, size: int) -> None:
        self._size = size
        self._inverses: list[Tensor] = []
        for start, stop in self._panels():
            columns, width = panel(start, stop), stop - start
            if not start:
                # Below the diagonal panels; what is above them is never read.
                self._lower = columns.new_empty(batch, size, size)
                self.failed = torch.zeros(batch, dtype=torch.bool, device=columns.device)
            lower = self._lower
            columns.baddbmm_(lower[:, start:, :start], lower[:, start:stop, :start].mT, alpha=-1)
            factor, info = torch.linalg.cholesky_ex(columns[:, :width])
            self.failed |= info != 0
            one = torch.eye(width, dtype=columns.dtype, device=columns.device)
            inverse = torch.linalg.solve_triangular(factor, one.expand_as(factor), upper=False)
            lower[:, stop:, start:stop] = columns[:, width:] @ inverse.mT
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


def _product(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """matrix[rows, rows] columns, by one product with the whole matrix for all systems."""
    batch, _, number = columns.shape
    at = rows.unsqueeze(2).expand_as(columns)
    spread = columns.new_zeros(batch, len(matrix), number).scatter_(1, at, columns)
    return times(matrix, spread).gather(1, at)
