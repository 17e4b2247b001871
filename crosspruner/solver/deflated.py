"""Refits under many different masks by conjugate gradients, all of them at once.

Where every output keeps other groups, each has a system H_SS of its own, and factors of all of them
cost far more than the moment H itself. But one splitting of H serves all supports S:

    H = E + U' U,    U (k, D) the leading directions of H (Nystroem)

Groups are correlated by what they share, which is mostly in U; so the blocks of E on the diagonal,
with U beside them, are nearly H, and their rows S nearly H_SS. By Woodbury's identity that
preconditioner takes one small system per support, a sum over the groups that it keeps:

    I + sum over kept g of U_g E_gg^-1 U_g'    (k, k)

Then some ten products with H, the same ones for all supports, are enough.

Source: our own arrangement of Nystroem preconditioning (Frangella, Tropp and Udell, SIMAX 2023) and
of conjugate gradients with refinement in a higher precision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosspruner.solver.full_float32 import full_float32
from crosspruner.solver.refined import LEAST_ROWS

MOST_DIRECTIONS = 256
"""Of U: more would save fewer steps than their systems cost."""

TOLERANCE = 1e-8
"""Energy of what is not solved yet over that of the solution: the share of the outputs' energy by
which the loss is above its least is about that."""

AIM = TOLERANCE / 4
"""Where a round ends, so that float64 finds the tolerance met."""

ROUNDS = 3
"""Of conjugate gradients in float32, each on what float64 says the last one has left."""

MOST_STEPS = 30
"""Of one round."""

# Of the moment's mean diagonal, on that of the blocks of E.
_LEAST_REST = 1e-4

_USUAL_STEPS = 15

# Operations of factors take at least as many times as long as those of products.
_FACTORS_TAKE = 2

# One batch of small systems holds at most this many entries (float32: 128 MB).
_CHUNK_ENTRIES = 2**25


def directions(rows: int) -> int:
    """k for a moment of so many rows."""
    return max(1, min(MOST_DIRECTIONS, rows // 8))


def sooner(kept: Tensor, groups: int, rows: int, outputs: int) -> Tensor:
    """Where conjugate gradients take less time than factors of each support.

    Args:
        kept: (b,) int64, the groups that each support keeps.
        groups: P.
        rows: D.
        outputs: of each support.

    Returns:
        (b,) bool.
    """
    few = directions(rows)
    step = 2 * rows**2 + 4 * rows * few + 2 * rows * rows // groups
    operations = few**2 * (few / 3 + 2 * groups) + _USUAL_STEPS * outputs * step
    factored = torch.minimum(kept, groups - kept).double() * (rows // groups)
    return (factored >= LEAST_ROWS) & (operations < _FACTORS_TAKE * factored**3 / 3)


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
        height = by_group.shape[2]
        every = torch.arange(groups, device=moment.device)
        blocks = moment.view(groups, height, groups, height)[every, :, every]
        rest = blocks - by_group.mT @ by_group
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


@full_float32()
def solve_all(
    moment: Tensor, splitting: Splitting, support: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """V_S = H_SS^-1 T_S of several outputs for each support.

    Args:
        moment: (D, D) H, float64.
        splitting: of it.
        support: (b, P) bool.
        target: (b, n, D) float64.

    Returns:
        V (b, n, D), zero where not kept, what it explains, tr V'(2 T - H V) (b,), both float64, and
        which supports (b,) have converged.
    """
    chunk = max(1, _CHUNK_ENTRIES // splitting.products.shape[1])
    solved = [
        _solve(moment, splitting, *part)
        for part in zip(support.split(chunk), target.split(chunk), strict=True)
    ]
    found, explained, done = (torch.cat(parts) for parts in zip(*solved, strict=True))
    return found, explained, done


def _solve(
    moment: Tensor, splitting: Splitting, support: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    height = moment.shape[0] // support.shape[1]
    kept = support.repeat_interleave(height, 1).unsqueeze(1)  # (b, 1, D)
    precondition = _Preconditioner(splitting, support)
    left = target * kept
    solution = torch.zeros_like(left)
    first = (left * precondition(left.float())).sum(2)  # (b, n)
    rest = first
    for _ in range(ROUNDS):
        solution += _conjugate_gradients(splitting.moment, precondition, kept, left.float())
        left = (target - (solution.flatten(0, 1) @ moment).view_as(solution)) * kept
        rest = (left * precondition(left.float())).sum(2)
        if not bool((rest > TOLERANCE * first).any()):
            break
    explained = (solution * (target + left)).sum((1, 2))
    return solution, explained, (rest <= TOLERANCE * first).all(1)


class _Preconditioner:
    """Residuals (b, n, D) to about H_SS^-1 times them, for one support each."""

    def __init__(self, splitting: Splitting, support: Tensor) -> None:
        self._of, self._groups = splitting, support.shape[1]
        kept = support.to(splitting.products)
        self._kept = kept.repeat_interleave(splitting.inverses.shape[1], 1).unsqueeze(1)
        few = len(splitting.leading)
        system = (kept @ splitting.products).view(-1, few, few)
        system.diagonal(dim1=1, dim2=2).add_(1)
        self._factor = torch.linalg.cholesky(system)

    def __call__(self, residual: Tensor) -> Tensor:
        own = self._of
        by_group = residual.flatten(0, 1).unflatten(1, (self._groups, -1)).transpose(0, 1)
        blocks = (by_group @ own.inverses).transpose(0, 1).reshape(residual.shape)
        shared = (blocks.flatten(0, 1) @ own.leading.T).unflatten(0, residual.shape[:2])
        # Two solutions by triangles take half the time of `cholesky_solve` here.
        shared = torch.linalg.solve_triangular(self._factor, shared.mT, upper=False)
        shared = torch.linalg.solve_triangular(self._factor.mT, shared, upper=True).mT
        blocks -= (shared.flatten(0, 1) @ own.solved).view_as(blocks)
        return blocks.mul_(self._kept)


def _conjugate_gradients(
    moment: Tensor, precondition: _Preconditioner, kept: Tensor, left: Tensor
) -> Tensor:
    """(b, n, D) float32: about H_SS^-1 times what is left (b, n, D)."""
    solution = torch.zeros_like(left)
    direction = precondition(left)
    energy = (left * direction).sum(2, keepdim=True)
    least = AIM * energy
    for _ in range(MOST_STEPS):
        image = (direction.flatten(0, 1) @ moment).view_as(direction).mul_(kept)
        curvature = (direction * image).sum(2, keepdim=True)
        # Those that are done stay: their directions are rounding, or zero.
        step = torch.where(energy > least, energy / curvature, 0.0)
        solution.addcmul_(step, direction)
        left = left.addcmul(-step, image)
        if not bool((energy > least).any()):
            break
        fresh = precondition(left)
        new = (left * fresh).sum(2, keepdim=True)
        direction = fresh.addcmul_(torch.where(energy > least, new / energy, 0.0), direction)
        energy = new
    return solution
