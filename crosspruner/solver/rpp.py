"""RPP: the relaxed probabilistic projection onto "exactly `keep` ones".

The plain projection of a score vector keeps its `keep` largest entries. RPP first relaxes the set
to the `ceil(keep * (1 + relax))` largest, the candidates, then draws `keep` of them without
replacement, with probability proportional to their height over the lowest candidate:

    scores      9  7  6  4  3  1        keep = 2, relax = 0.5: three candidates
    candidates  9  7  6                 heights 3, 1, 0

Everything here derives from one primitive, `relaxed_order`: the drawn order of a row, best first.
`rpp` keeps the first `keep` entries of that order; `relaxed_scores` rearranges the scores along it,
so that any other projection (one on a crossbar budget, say) becomes a relaxed one.
"""

import math

import torch
from torch import Tensor

from crosspruner.errors import SolverError


def rpp(
    state: Tensor,
    keep: int | Tensor,
    relax: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Keep exactly `keep` entries of each row, by a draw among the relaxed top set.

    Args:
        state: (B, P) float, any scale; only differences within a row matter. `-inf` is never kept,
            `+inf` always.
        keep: entries to keep per row, an int or (B,) integers in 0..P.
        relax: how much larger than `keep` the candidate set is, >= 0, as a fraction of `keep`.
            0 is the plain top-`keep` projection: no randomness is consumed and ties go to the
            lower index.
        generator: source of the draw; None draws from torch's global generator.

    Returns:
        (B, P) bool with exactly `keep` True per row.

    Raises:
        SolverError: wrong shapes, NaN scores, `keep` out of range, `relax` negative, fewer entries
            above `-inf` than `keep` or more entries at `+inf`.

    Source: Liang et al., IEEE Access 2018 (RPP). Heights over the lowest candidate and the
    candidate count are our reading.
    """
    keep = check_keep(state, keep)
    _check_scores(state, keep, relax)
    return keep_first(relaxed_order(state, keep, relax, generator), keep)


def relaxed_scores(
    scores: Tensor,
    keep: int | Tensor,
    relax: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rearrange each row's scores so that its top-`keep` is an RPP draw.

    The row keeps its values and only hands them out anew: the first entry of the drawn order gets
    the highest score, and so on. Sums, thresholds and comparisons between rows stay meaningful, so
    the result can be fed to any projection. Tied scores stay tied.

    Args, Raises: as for `rpp`.

    Returns:
        (B, P), dtype of `scores`; `scores` itself where `relax` is 0.
    """
    keep = check_keep(scores, keep)
    _check_scores(scores, keep, relax)
    if relax == 0:
        return scores
    order = relaxed_order(scores, keep, relax, generator)
    descending = scores.sort(dim=1, descending=True, stable=True).values
    return torch.empty_like(scores).scatter_(1, order, descending)


def relaxed_order(
    scores: Tensor, keep: Tensor, relax: float, generator: torch.Generator | None
) -> Tensor:
    """Order each row best first, the candidates by a draw, the rest by score. Arguments unchecked.

    Args:
        scores: (B, P) float without NaN.
        keep: (B,) integers.
        relax: >= 0.
        generator: source of the draw.

    Returns:
        (B, P) int64, a permutation of 0..P-1 per row.
    """
    values, order = scores.sort(dim=1, descending=True, stable=True)
    if relax == 0:
        return order
    num_candidates = _num_candidates(keep, relax, values)
    # Beyond the widest candidate set the order by score stands.
    width = int(num_candidates.max()) if len(keep) else 0
    if width == 0:
        return order
    top = values[:, :width].to(torch.promote_types(values.dtype, torch.float32))
    rank = torch.arange(width, device=values.device)
    candidate = rank < num_candidates.unsqueeze(1)
    lowest = top.gather(1, (num_candidates - 1).clamp(min=0).unsqueeze(1))
    height = torch.where(candidate & top.isfinite(), top - lowest, 0.0)
    height = height / height.amax(1, keepdim=True).clamp(min=torch.finfo(height.dtype).tiny)
    # Exponential clocks: the entry of rate w rings after E / w, and the order of ringing is the
    # order of successive draws with probability w / (sum of the w left).
    clock = torch.empty_like(top).exponential_(generator=generator)
    time = torch.where(height > 0, clock / height, clock).clamp(max=1e30)
    # Certain (+inf) entries come first, then those of some height. The lowest candidate and its
    # ties have no chance before all of these are drawn; among themselves they are drawn evenly.
    tier = torch.where(height > 0, 1.0, 2.0).to(time.dtype)
    tier = torch.where(top == math.inf, 0.0, torch.where(candidate, tier, 3.0))
    within = torch.where(candidate, time / (1 + time), rank / width)
    drawn = (tier + within).argsort(dim=1, stable=True)
    return torch.cat([order[:, :width].gather(1, drawn), order[:, width:]], dim=1)


def keep_first(order: Tensor, keep: Tensor) -> Tensor:
    """Mask the first `keep` (B,) entries of each row of `order` (B, P). Returns (B, P) bool."""
    first = torch.arange(order.shape[1], device=order.device) < keep.unsqueeze(1)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, first)


def check_keep(scores: Tensor, keep: int | Tensor) -> Tensor:
    """Return `keep` as (B,) int64 on the device of `scores` (B, P), or raise SolverError."""
    if scores.ndim != 2:
        raise SolverError(f"scores must have shape (problems, groups), got {tuple(scores.shape)}")
    rows, groups = scores.shape
    keep = torch.as_tensor(keep, device=scores.device)
    if keep.is_floating_point() or keep.is_complex() or keep.dtype == torch.bool:
        raise SolverError(f"keep counts groups and must be an integer, got {keep.dtype}")
    if keep.shape not in ((), (rows,)):
        raise SolverError(
            f"keep must be one number or one per problem ({rows},), got {tuple(keep.shape)}"
        )
    keep = keep.to(torch.int64).expand(rows)
    if rows and not (keep.min() >= 0 and keep.max() <= groups):
        raise SolverError(
            f"keep must lie in 0..{groups}, the number of groups;"
            f" got {int(keep.min())}..{int(keep.max())}"
        )
    return keep


def _check_scores(scores: Tensor, keep: Tensor, relax: float) -> None:
    if not scores.is_floating_point():
        raise SolverError(f"scores must be floating point, got {scores.dtype}")
    if not 0 <= relax < math.inf:
        raise SolverError(f"relax must be >= 0 (0: no relaxation; 0.5 is usual), got {relax}")
    if scores.isnan().any():
        raise SolverError("scores contain NaN; check the activations and weights they come from")
    if ((scores > -math.inf).sum(1) < keep).any():
        raise SolverError("a row has fewer scores above -inf than groups to keep; lower keep")
    if ((scores == math.inf).sum(1) > keep).any():
        raise SolverError("a row has more scores at +inf (always kept) than groups to keep")


def _num_candidates(keep: Tensor, relax: float, values: Tensor) -> Tensor:
    """ceil(keep * (1 + relax)), at most the entries above -inf. Returns (B,) int64."""
    # 10 * 1.1 is 11.000000000000002: without the margin the ceiling would add a candidate.
    wanted = (keep.to(torch.float64) * (1 + relax) * (1 - 1e-12)).ceil().to(torch.int64)
    return torch.minimum(wanted, (values > -math.inf).sum(1))
