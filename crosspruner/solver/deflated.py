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

from collections.abc import Callable

import torch
from torch import Tensor

from crosspruner.solver.full_float32 import full_float32
from crosspruner.solver.refined import LEAST_ROWS
from crosspruner.solver.splitting import Splitting, directions

TOLERANCE = 1e-8
"""Energy of what is not solved yet over that of the solution: the share of the outputs' energy by
which the loss is above its least is about that."""

AIM = TOLERANCE / 4
"""Where a round ends, so that float64 finds the tolerance met."""

ROUNDS = 3
"""Of conjugate gradients in float32, each on what float64 says the last one has left."""

MOST_STEPS = 30
"""Of one round."""

_USUAL_STEPS = 15

# Operations of factors take at least as many times as long as those of products.
_FACTORS_TAKE = 2

# One batch of small systems holds at most this many entries (float32: 128 MB).
_CHUNK_ENTRIES = 2**25


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


def solve_into(
    moment: Tensor,
    split: Callable[[], Splitting | None],
    mask: Tensor,
    target: Tensor,
    weights: Tensor,
    loss: Tensor,
) -> Tensor:
    """Solve those of many problems that take less time so than by factors.

    Args:
        moment: (D, D) H, float64.
        split: gives its splitting.
        mask: (B, P) bool.
        target: (B, D, n) float64.
        weights: (B, D, n), takes the solutions.
        loss: (B,), falls by what they explain.

    Returns:
        Which problems have been solved, (B,) bool.
    """
    solved = torch.zeros_like(mask[:, 0])
    which = sooner(mask.sum(1), mask.shape[1], *target.shape[1:]).nonzero().squeeze(1)
    splitting = split() if len(which) else None
    if splitting is None:
        return solved
    found, explained, done = solve_all(moment, splitting, mask[which], target[which].mT)
    which = which[done]
    weights[which] = found[done].mT
    loss[which] -= explained[done]
    return solved.index_fill(0, which, True)


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
        if bool((rest.abs() <= TOLERANCE * first).all()):
            break
    explained = (solution * (target + left)).sum((1, 2))
    return solution, explained, (rest.abs() <= TOLERANCE * first).all(1)


class _Preconditioner:
    """Residuals (b, n, D) to about H_SS^-1 times them, for one support each."""

    def __init__(self, splitting: Splitting, support: Tensor) -> None:
        self._of, self._groups = splitting, support.shape[1]
        kept = support.to(splitting.products)
        self._kept = kept.repeat_interleave(splitting.inverses.shape[1], 1).unsqueeze(1)
        few = len(splitting.leading)
        system = (kept @ splitting.products).view(-1, few, few)
        system.diagonal(dim1=1, dim2=2).add_(1)
        self._factor, failed = torch.linalg.cholesky_ex(system)
        # Too close to singular for float32: these do without U, and may not converge.
        self._factor[failed != 0] = 1e15 * torch.eye(few, device=kept.device)

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
