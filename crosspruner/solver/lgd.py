"""LGD with RPP: least-squares mask search that steps in dense and projects into sparse space.

    minimise  L(beta) = beta' G beta - 2 h' beta   over binary beta with `keep` ones
    state     d, a dense vector per problem; beta = RPP(d), see `rpp`
    step      d <- d - eta * grad L(beta), the gradient taken at the sparse point

The dense state remembers what the projection throws away: a group that was pruned wrongly is
pulled up step after step until it comes back. Stepping from beta itself (iterative hard
thresholding) forgets that, and sticks at the first support it reaches.
"""

import math

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.exhaustive import best_of_all, is_small
from crosspruner.solver.greedy import greedy_elimination
from crosspruner.solver.rpp import check_keep, keep_first, relaxed_order
from crosspruner.solver.swap import gram_loss, swap_descent

# One chunk of the batch holds at most this many Gram entries, restarts counted (256 MB).
_CHUNK_ENTRIES = 2**25


def lgd_rpp(
    gram: Tensor,
    keep: int | Tensor,
    linear: Tensor | None = None,
    steps: int = 100,
    relax: float = 0.5,
    restarts: int = 8,
    swaps: bool = True,
    generator: torch.Generator | None = None,
    kicks: int = 8,
) -> Tensor:
    """Choose which groups each problem keeps so that its outputs change least.

    Args:
        gram: (B, P, P) float, symmetric positive semidefinite: G[a, b] = E <Z_a, Z_b>, the inner
            products of the partial outputs, in any unit. Computed on in float64.
        keep: groups to keep, one int or (B,) integers in 0..P.
        linear: (B, P) h[a] = E <Z_a, Y>. None: `gram.sum(-1)`, that is Y = the sum of all Z.
        steps: LGD steps, >= 0.
        relax: relaxation of the first projection, >= 0; it falls to 0 along the steps.
        restarts: starting states per problem, >= 1, solved in one batch. The first starts from
            the groups' own losses, the others at random.
        swaps: polish every restart's best mask, and that of `greedy_elimination`, by pairwise
            swaps (`swap_descent`). The loss is then never above greedy with swaps. Problems of
            few masks are solved by trying all of them (`exhaustive`).
        generator: source of all randomness, on the device of `gram`. None: a new one with seed 0,
            so that equal problems get equal masks.
        kicks: after the swaps, leave each local optimum this many times by an RPP draw on the
            groups' marginal losses, relaxed by 1, 2, 4 and 8 times `relax` in turn, swap down
            again and keep the better mask. Without swaps or with relax = 0 there are no kicks.

    Returns:
        (B, P) bool, exactly `keep` True per row.

    Raises:
        SolverError: wrong shapes, NaN or infinite entries, an argument out of range.

    Source: Liang et al., IEEE Access 2018 (LGD, RPP); step size, annealing, restarts, swaps and
    kicks are our reading.
    """
    gram, counts, h = check_problem(gram, keep, linear)
    if steps < 0 or restarts < 1 or kicks < 0 or not 0 <= relax < math.inf:
        raise SolverError(
            "lgd_rpp needs steps >= 0, restarts >= 1, kicks >= 0 and a finite relax >= 0;"
            f" got steps={steps}, restarts={restarts}, kicks={kicks}, relax={relax}"
        )
    if generator is None:
        generator = torch.Generator(gram.device).manual_seed(0)
    groups = gram.shape[1]
    chosen = torch.zeros_like(h, dtype=torch.bool)
    search = torch.ones_like(counts, dtype=torch.bool)
    for number in counts.unique().tolist() if swaps else ():
        if is_small(groups, number):
            rows = (counts == number).nonzero().squeeze(1)
            chosen[rows] = best_of_all(gram[rows], h[rows], number)
            search[rows] = False
    left = search.nonzero().squeeze(1)
    chunk = max(1, _CHUNK_ENTRIES // max(1, groups * groups * (restarts + 1)))
    for rows in left.split(chunk) if len(left) else ():
        part_gram, part_linear = gram[rows], h[rows]
        masks = _descend(part_gram, part_linear, counts[rows], steps, relax, restarts, generator)
        if swaps:
            # Greedy's mask runs along, so that no luck of the draw ends above it.
            extra = greedy_elimination(part_gram, part_linear, counts[rows]).unsqueeze(1)
            masks = torch.cat([masks, extra], dim=1)
            masks = _polish(part_gram, part_linear, masks, relax, kicks, generator)
        best = gram_loss(part_gram, part_linear, masks).argmin(1)
        chosen[rows] = masks[torch.arange(len(masks), device=masks.device), best]
    return chosen


def check_problem(
    gram: Tensor, keep: int | Tensor, linear: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Check a Gram problem and bring it to float64.

    Args:
        gram: (B, P, P) float. keep: int or (B,). linear: (B, P) or None for `gram.sum(-1)`.

    Returns:
        gram (B, P, P) float64 symmetric, keep (B,) int64, linear (B, P) float64.

    Raises:
        SolverError: wrong shapes, NaN or infinite entries, keep out of 0..P.
    """
    if gram.ndim != 3 or gram.shape[1] != gram.shape[2]:
        raise SolverError(
            f"gram must have shape (problems, groups, groups), got {tuple(gram.shape)};"
            " give a single problem as gram[None]"
        )
    if linear is not None and linear.shape != gram.shape[:2]:
        raise SolverError(
            f"linear must have shape {tuple(gram.shape[:2])} to fit gram, got {tuple(linear.shape)}"
        )
    gram = gram.detach().to(torch.float64)
    gram = (gram + gram.mT) / 2
    linear = gram.sum(-1) if linear is None else linear.detach().to(gram)
    if not (gram.isfinite().all() and linear.isfinite().all()):
        raise SolverError("gram or linear contain NaN or Inf; check the activations they come from")
    return gram, check_keep(linear, keep), linear


def _descend(
    gram: Tensor,
    linear: Tensor,
    keep: Tensor,
    steps: int,
    relax: float,
    restarts: int,
    generator: torch.Generator,
) -> Tensor:
    """Run all restarts of all problems as one batch. Returns each run's best mask (B, R, P)."""
    batch, groups, _ = gram.shape
    # With G / lambda_max the step size eta is 1 and the state has no unit.
    # Where h is all there is, that would put it beyond the range of numbers.
    number = torch.finfo(gram.dtype)
    least = (linear.abs().amax(1) * number.eps).clamp(min=number.tiny)
    scale = torch.maximum(largest_eigenvalue(gram), least)
    gram = gram / scale.view(-1, 1, 1)
    linear = (linear / scale.view(-1, 1)).unsqueeze(1)
    state = torch.rand(
        batch, restarts, groups, generator=generator, dtype=gram.dtype, device=gram.device
    )
    state[:, 0] = _own_loss(gram, linear.squeeze(1))
    repeated_keep = keep.repeat_interleave(restarts)

    best = gram.new_full((batch, restarts), torch.inf)
    best_mask = torch.zeros(batch, restarts, groups, dtype=torch.bool, device=gram.device)
    for step in range(steps + 1):
        # Step 1: beta = RPP(d), relaxed less and less; the last fifth is the plain projection.
        relaxation = relax * max(0.0, 1 - step / (0.8 * steps)) if steps else relax
        order = relaxed_order(state.flatten(0, 1), repeated_keep, relaxation, generator)
        mask = keep_first(order, repeated_keep).view_as(best_mask)
        beta = mask.to(gram.dtype)
        # Step 2: the gradient at the sparse beta moves the dense d.
        product = beta @ gram
        state = state - 2 * (product - linear)
        # Step 3: remember the best beta.
        loss = ((product - 2 * linear) * beta).sum(-1)
        better = loss < best
        best = torch.where(better, loss, best)
        best_mask = torch.where(better.unsqueeze(-1), mask, best_mask)
    return best_mask


def _polish(
    gram: Tensor,
    linear: Tensor,
    masks: Tensor,
    relax: float,
    kicks: int,
    generator: torch.Generator,
) -> Tensor:
    """Swap every mask (B, R, P) down to a local optimum, and on from there. Returns (B, R, P)."""
    batch, runs, groups = masks.shape
    masks = swap_descent(gram, linear, masks)
    loss = gram_loss(gram, linear, masks)
    keep = masks.sum(2).flatten()
    own = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    for kick in range(kicks if relax > 0 else 0):
        # The score of a group is what the loss gains from having it: for a kept one the rise on
        # pruning it, for a pruned one the fall (mostly negative here) on reviving it.
        slope = 2 * (masks.to(gram.dtype) @ gram - linear.unsqueeze(1))
        score = torch.where(masks, own - slope, -own - slope).flatten(0, 1)
        # Near kicks find better neighbours, wide ones other valleys: take turns.
        width = relax * 2 ** (kick % 4)
        kicked = keep_first(relaxed_order(score, keep, width, generator), keep)
        kicked = swap_descent(gram, linear, kicked.view(batch, runs, groups))
        kicked_loss = gram_loss(gram, linear, kicked)
        better = kicked_loss < loss
        masks = torch.where(better.unsqueeze(2), kicked, masks)
        loss = torch.where(better, kicked_loss, loss)
    return masks


def largest_eigenvalue(gram: Tensor, iterations: int = 50) -> Tensor:
    """Largest eigenvalue of each symmetric PSD matrix (B, P, P), by power iteration. (B,)"""
    if gram.shape[1] == 0:
        return gram.new_zeros(gram.shape[0])
    # The longest column is a good start. Alone it never leaves its block of a block-diagonal G,
    # where another block may hold more, so a drawn vector goes with it: the same one every time.
    longest = gram.norm(dim=1).argmax(1)
    generator = torch.Generator(gram.device).manual_seed(0)
    start = torch.randn(gram.shape[1], generator=generator, dtype=gram.dtype, device=gram.device)
    start = (start / gram.shape[1] ** 0.5).repeat(len(gram), 1)
    start[torch.arange(len(gram), device=gram.device), longest] += 1
    vector = gram @ start.unsqueeze(-1)
    # Not `normalize`: its floor of 1e-12 would count Gram matrices in small units as zero.
    tiny = torch.finfo(gram.dtype).tiny
    for _ in range(iterations):
        vector = gram @ (vector / vector.norm(dim=1, keepdim=True).clamp(min=tiny))
    return vector.norm(dim=1).squeeze(1)


def _own_loss(gram: Tensor, linear: Tensor) -> Tensor:
    """Loss of pruning each group alone, scaled into -1..1 per problem. (B, P)"""
    rise = gram.diagonal(dim1=1, dim2=2) - 2 * (gram.sum(-1) - linear)
    return rise / rise.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rise.dtype).tiny)
