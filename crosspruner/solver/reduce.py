"""A small stand-in for a large refit problem: a few directions per group instead of all its rows.

When group h is pruned, the refit moves the weights of group g by A_gh A_hh^-1 V_h (A = H^-1, V the
dense solution). These responses to all single removals, with V_g itself, and the responses to what
these have moved, span nearly all that the refit of g will ever need. Each problem keeps the `rank`
strongest directions per group, measured in the metric A_gg^-1 in which pruning costs are counted,
and its normal equations shrink from P * d to P * rank rows. Masks are chosen there; losses and
weights are always solved in full.

Source: our own; a Galerkin projection as in reduced-basis methods.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosspruner.solver.factor import cholesky
from crosspruner.solver.full_float32 import full_float32
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.side_by_side import part_size, side_by_side

# Responses, or products with the moment, of one chunk of problems have at most this many entries
# (float32: 30 MB). Larger ones leave the cache, and the allocator returns them to the system.
_CHUNK_ENTRIES = 15 * 2**19

_TILE = 512
"""Rows of the moment."""

SECOND_FLOPS = 5e10
"""Operations that the sources of second responses, and these, may take each."""

LEAST_PIVOT = 0.95
"""Of a stand-in's Cholesky factor, where 1 is the least that is exact: see `_holds`."""


def condense_targets(problem: RefitProblem, most: int) -> RefitProblem:
    """Turn a problem's outputs until few of them carry nearly all energy, and keep those.

    Any rotation of the outputs leaves the loss of every mask as it is; dropping outputs leaves out
    what they would add. Linear layers put 100 and more outputs under one mask.

    Args:
        problem: of n outputs.
        most: outputs to keep, >= 1; n or more leaves the problem as it is.

    Returns:
        The problem of min(n, most) outputs; its losses are upper bounds of the true ones.
    """
    if problem.target.shape[2] <= most:
        return problem
    weights = problem.inverse_times(problem.target)
    energy = problem.target.mT @ weights
    main = torch.linalg.eigh((energy + energy.mT) / 2).eigenvectors[:, :, -most:]
    return replace(problem, target=problem.target @ main).sharing(problem)


def reduce_problem(problem: RefitProblem, rank: int) -> RefitProblem:
    """Project a refit problem with a shared moment onto `rank` directions per group.

    Args:
        problem: moment (D, D), target (B, D, n).
        rank: directions per group, 1..d.

    Returns:
        the projected problem: moment (B, P * rank, P * rank), target (B, P * rank, n); the loss of
        a mask there is an upper bound of its true loss, up to the digits of float32.
    """
    made = _stand_in(problem, rank, torch.float32) or _stand_in(problem, rank, torch.float64)
    assert made is not None
    return RefitProblem(*made, problem.constant, problem.num_groups)


@full_float32()
def _stand_in(problem: RefitProblem, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Moment and target of the stand-in (float64), by directions and products in `dtype`.

    A stand-in only has to order masks, and float32 takes a third less time. None where the moment
    is too close to singular for it.
    """
    frame = _Frame.of(problem, dtype)
    groups, height = problem.num_groups, problem.group_size
    sources = frame.weights
    if 2 * problem.target.numel() * problem.target.shape[1] <= SECOND_FLOPS:
        sources = torch.cat([sources, frame.moved(sources)], 2)
    num_responses = groups * sources.shape[2]
    # Sketches are drawn from a generator of their own: the stand-in is a function of the problem.
    generator = torch.Generator(problem.target.device).manual_seed(0)
    # More directions than responses: these, and random ones beside them.
    shape = (num_responses, rank) if rank < num_responses else (rank - num_responses, height)
    sketch = torch.randn(
        shape, generator=generator, dtype=torch.float64, device=problem.target.device
    ).to(dtype)
    tiles = _tiles(groups, height)
    at_once = tiles[0].stop  # groups of a tile
    entries = at_once * max(problem.target.shape[1] * rank, height * num_responses)
    chunk = part_size(problem.num_problems, max(1, _CHUNK_ENTRIES // entries))

    def made_of(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        removed, target = part
        of_tiles = (_directions(frame.responses(removed, t), sketch, rank) for t in tiles)
        basis = torch.cat([of.unflatten(0, (removed.shape[1], -1)) for of in of_tiles], 1)
        moment = frame.projected(basis).double()
        if dtype == torch.float32 and not _holds(moment):
            raise _TooFewDigits
        return moment, (basis @ target.transpose(0, 1)).double().flatten(1, 2)

    parts = list(zip(sources.split(chunk, 1), frame.target.split(chunk, 1), strict=True))
    try:
        made = side_by_side(made_of, parts, problem.target.device)
    except _TooFewDigits:
        return None
    moment, target = (torch.cat(tensors) for tensors in zip(*made, strict=True))
    return moment, target


class _TooFewDigits(Exception):
    """Of float32, for this moment."""


def _holds(moment: Tensor) -> bool:
    """Whether the digits of float32 were enough for the stand-in's moment.

    The directions of a group are orthonormal in what is left of its moment once all other groups
    have explained theirs, so no pivot of an exact factor is below 1.
    """
    factor, failed = torch.linalg.cholesky_ex(moment)
    pivots = factor.diagonal(dim1=1, dim2=2)
    return not bool(failed.any()) and bool((pivots > LEAST_PIVOT).all())


@dataclass(frozen=True)
class _Frame:
    """A problem in coordinates in which every block A_gg of the inverse is the unit matrix.

    With C_g C_g' = A_gg they are C_g^-1 times the weights. Then costs are counted in plain lengths,
    and the response of group g to the removal of h is A_gh times the weights of h.
    """

    inverse: Tensor
    """(P, d, D) A, row after row."""
    weights: Tensor
    """(P, B, n, d) V, the dense solution."""
    target: Tensor
    """(P, B, d, n) T."""
    moment: Tensor | None
    """(P, d, D) H; None where there are patches."""
    patches: Tensor | None
    """(P, d, N) the patches over the root of their number."""
    ridge: Tensor | None
    """(P, d, d) what the patches leave out of the blocks H_gg."""

    @classmethod
    def of(cls, problem: RefitProblem, dtype: torch.dtype) -> "_Frame":
        groups, height = problem.num_groups, problem.group_size
        blocks = problem.inverse_blocks
        root = cholesky(blocks)  # C
        one = torch.eye(height, dtype=root.dtype, device=root.device).expand_as(root)
        back = torch.linalg.solve_triangular(root, one, upper=False)  # C^-1
        weights = problem.inverse_times(problem.target)
        weights = back @ _first(weights, groups)
        target = root.mT @ _first(problem.target, groups)
        weights = weights.unflatten(2, (problem.num_problems, -1)).permute(0, 2, 3, 1)
        target = target.unflatten(2, (problem.num_problems, -1)).transpose(1, 2)
        small = (weights.to(dtype).contiguous(), target.to(dtype).contiguous())
        root, back = root.to(dtype), back.to(dtype)
        if problem.patches is None:
            inverse = _turned(back, problem.inverse.to(dtype))
            return cls(inverse, *small, _turned(root.mT, problem.moment.to(dtype)), None, None)
        # Both from factors among the patches: A_gh = -F_g' F_h / r beside the diagonal.
        half = back @ _first(problem.half.to(dtype).mT.unsqueeze(0), groups)
        inverse = (half.flatten(0, 1) / -problem.ridge) @ half.flatten(0, 1).T
        every = torch.arange(groups, device=inverse.device)
        inverse.view(groups, height, groups, height)[every, :, every] = one.to(dtype)
        patches = root.mT @ _first(problem.patches.to(dtype).mT.unsqueeze(0), groups)
        patches /= len(problem.patches) ** 0.5
        ridge = problem.ridge * root.mT @ root
        return cls(inverse.view(groups, height, -1), *small, None, patches, ridge)

    def moved(self, weights: Tensor) -> Tensor:
        """(P, B, n, d) what each group answers the removals of all others, from weights."""
        groups, batch, outputs, height = weights.shape
        rows = weights.permute(1, 2, 0, 3).reshape(batch * outputs, -1)
        answers = (rows @ self.inverse.flatten(0, 1)).view(batch, outputs, groups, height)
        return answers.permute(2, 0, 1, 3) - weights  # its own block is the unit matrix

    def responses(self, removed: Tensor, tile: slice) -> Tensor:
        """(b * t, P * n, d) how each of t groups answers what is taken from each group.

        Args:
            removed: (P, b, n, d), n of them from each group.
            tile: the groups that answer.
        """
        height = removed.shape[3]
        columns = slice(tile.start * height, tile.stop * height)
        # Outputs before problems: what one group answers is then a matrix in place, uncopied.
        answers = removed.transpose(1, 2).flatten(1, 2) @ self.inverse[:, :, columns]
        answers = answers.view(removed.shape[0] * removed.shape[2], -1, height)
        return answers.transpose(0, 1)

    def projected(self, basis: Tensor) -> Tensor:
        """(b, P * rank, P * rank) the moment between directions (b, P, rank, d) of the groups."""
        batch, groups, rank, height = basis.shape
        first = basis.transpose(0, 1)
        if self.moment is not None:
            moment = basis.new_empty(batch, groups, rank, groups, rank)
            for tile in _tiles(groups, height):
                start, stop = tile.start, tile.stop
                # Directions before problems: what faces one group is a matrix in place, uncopied.
                half = basis[:, tile].permute(1, 2, 0, 3).reshape(stop - start, -1, height)
                half = half @ self.moment[tile, :, : stop * height]
                half = half.view(-1, batch * stop, height).transpose(0, 1)  # (b * stop, t * r, d)
                block = basis[:, :stop].flatten(0, 1) @ half.mT
                block = block.view(batch, stop, rank, -1, rank)
                moment[:, :stop, :, tile] = block
                moment[:, tile, :, :stop] = block.permute(0, 3, 4, 1, 2)
            moment = moment.flatten(3).flatten(1, 2)
            return (moment + moment.mT) / 2
        assert self.patches is not None
        assert self.ridge is not None
        seen = (first.reshape(groups, -1, height) @ self.patches).view(groups, batch, rank, -1)
        seen = seen.transpose(0, 1).flatten(1, 2)
        moment = seen @ seen.mT
        every = torch.arange(groups, device=basis.device)
        own = first.reshape(groups, -1, height) @ self.ridge
        own = own.view_as(first) @ first.mT  # (P, b, rank, rank)
        moment.view(batch, groups, rank, groups, rank)[:, every, :, every] += own
        return moment


def _tiles(groups: int, height: int) -> list[slice]:
    """Groups whose rows of a symmetric matrix are multiplied at once, up to the diagonal: few
    enough to leave out nearly half of the products, enough for fast ones."""
    tile = max(1, _TILE // height)
    return [slice(g, min(g + tile, groups)) for g in range(0, groups, tile)]


def _first(columns: Tensor, groups: int) -> Tensor:
    """(P, d, B * n) from (B, D, n)."""
    return columns.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)


def _turned(by: Tensor, matrix: Tensor) -> Tensor:
    """(P, d, D) by_g M_gh by_h' for by (P, d, d) and a symmetric matrix (D, D)."""
    groups, height = by.shape[:2]
    rows = (by @ matrix.view(groups, height, -1)).view(-1, groups, height)
    return (rows.transpose(0, 1) @ by.mT).transpose(0, 1).reshape(groups, height, -1)


def _directions(responses: Tensor, sketch: Tensor, rank: int) -> Tensor:
    """The strongest directions (c, rank, d) of responses (c, m, d), orthonormal."""
    rows = responses
    if rank < responses.shape[1]:
        # Two rounds of subspace iteration find the leading space well enough at any spectrum: among
        # the responses or among the rows, whichever are fewer.
        if responses.shape[1] <= responses.shape[2]:
            products = responses @ responses.mT
            mixed = torch.linalg.qr(products @ torch.linalg.qr(products @ sketch).Q).Q
            rows = mixed.mT @ responses
        else:
            products = responses.mT @ responses
            mixed = products @ torch.linalg.qr(responses.mT @ sketch).Q
            rows = (products @ torch.linalg.qr(mixed).Q).mT
    elif len(sketch):
        rows = torch.cat([responses, sketch.expand(len(responses), -1, -1)], dim=1)
    return torch.linalg.qr(rows.mT).Q.mT
