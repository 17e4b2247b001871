"""How an unrolled weight matrix falls into groups of rows and problems of columns.

Rows: P consecutive groups, the last one often shorter; solvers see them padded to equal height.
Columns: each problem owns some outputs, listed in `outputs` (B, n) and padded with -1.
"""

import torch
from torch import Tensor

from crosspruner.errors import SolverError

# Temporaries of one pass over the outputs hold at most this many entries (float64: 256 MB).
_CHUNK_ENTRIES = 2**25


def padded_rows(group_rows: Tensor) -> tuple[Tensor, int]:
    """Where each row goes when all groups are padded to the height of the largest.

    Args:
        group_rows: (P,) rows of each group.

    Returns:
        (D,) int64 places among P * height rows, and the height.
    """
    height = int(group_rows.max())
    first = torch.arange(len(group_rows), device=group_rows.device) * height
    start = group_rows.cumsum(0) - group_rows
    row = torch.arange(int(group_rows.sum()), device=group_rows.device)
    return row + (first - start).repeat_interleave(group_rows), height


def take_outputs(matrix: Tensor, outputs: Tensor) -> Tensor:
    """Columns of a matrix (D, O) by problem (B, D, n); padding (-1) gives zero columns."""
    columns = matrix.T[outputs.clamp(min=0)] * (outputs >= 0).unsqueeze(2)
    return columns.mT.contiguous()


def join_weights(weights: Tensor, group_rows: Tensor, outputs: Tensor, num_outputs: int) -> Tensor:
    """Undo padding: the weights of all problems as one unrolled matrix.

    Args:
        weights: (B, P * height, n) as `RefitProblem.solve` returns them.
        group_rows: (P,) rows of each group.
        outputs: (B, n) columns of each problem, -1 pads.
        num_outputs: O.

    Returns:
        (D, O), zero in columns that belong to no problem.
    """
    place, _ = padded_rows(group_rows)
    columns = weights[:, place].mT
    owned = outputs >= 0
    joined = weights.new_zeros(num_outputs, len(place))
    joined[outputs[owned]] = columns[owned]
    return joined.T


def gram_from_moments(
    moment: Tensor, weight: Tensor, group_rows: Tensor, outputs: Tensor, cross: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """G and h of all problems: G[a, b] = sum over o of w_ao' M_ab w_bo, h[a] = sum of w_ao' C_ao.

    Args:
        moment: (D, D) E X~' X~, symmetric.
        weight: (D, O) unrolled weights.
        group_rows: (P,) rows of each group.
        outputs: (B, n) columns of each problem, -1 pads.
        cross: (D, O) E X~' Y. None: `moment @ weight`.

    Returns:
        gram (B, P, P) and linear (B, P), dtype of `moment`.
    """
    groups = len(group_rows)
    place, height = padded_rows(group_rows)
    size = groups * height
    padded_moment = moment.new_zeros(size, size)
    padded_moment[place[:, None], place] = moment
    padded_weight = moment.new_zeros(size, weight.shape[1])
    padded_weight[place] = weight
    # (P, D, d): the columns of the moment by group, for one batched product per chunk of outputs.
    by_group = padded_moment.view(size, groups, height).transpose(0, 1)
    per_output = moment.new_empty(weight.shape[1], groups, groups)
    chunk = max(1, _CHUNK_ENTRIES // max(1, groups * size))
    for start in range(0, weight.shape[1], chunk):
        part = padded_weight[:, start : start + chunk]
        product = by_group @ part.view(groups, height, -1)
        product = (product * part).view(groups, groups, height, -1).sum(2)
        per_output[start : start + chunk] = product.permute(2, 0, 1)
    gram = _sum_outputs(per_output, outputs)
    if cross is None:
        return gram, gram.sum(-1)
    aligned = moment.new_zeros(size, weight.shape[1])
    aligned[place] = weight * cross
    return gram, _sum_outputs(aligned.view(groups, height, -1).sum(1).T, outputs)


def block_norms(weight: Tensor, group_rows: Tensor, outputs: Tensor) -> Tensor:
    """Squared Frobenius norm of each problem's groups of weights (D, O). Returns (B, P)."""
    row_group = torch.arange(len(group_rows), device=weight.device).repeat_interleave(group_rows)
    norms = weight.new_zeros(len(group_rows), weight.shape[1])
    return _sum_outputs(norms.index_add_(0, row_group, weight.square()).T, outputs)


def check_moments(
    moment: Tensor,
    weight: Tensor,
    group_rows: Tensor,
    cross: Tensor | None,
    energy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check a layer's moments and bring them to float64.

    Returns:
        moment (D, D), weight (D, O), cross (D, O) and energy (O,), all float64.

    Raises:
        SolverError: wrong shapes, NaN or infinite entries.
    """
    rows = weight.shape[0]
    if moment.shape != (rows, rows):
        raise SolverError(
            f"moment must be ({rows}, {rows}) to fit weight {tuple(weight.shape)},"
            f" got {tuple(moment.shape)}"
        )
    if group_rows.ndim != 1 or int(group_rows.sum()) != rows or int(group_rows.min()) < 1:
        raise SolverError(f"group_rows must be positive and sum to {rows} rows, got {group_rows}")
    if cross is not None and cross.shape != weight.shape:
        raise SolverError(
            f"cross must have the shape of weight {tuple(weight.shape)}, got {tuple(cross.shape)}"
        )
    moment, weight = moment.detach().to(torch.float64), weight.detach().to(torch.float64)
    own = moment @ weight
    cross = own if cross is None else cross.detach().to(torch.float64)
    energy = (own * weight).sum(0) if energy is None else energy.detach().to(torch.float64)
    if not all(tensor.isfinite().all() for tensor in (moment, weight, cross, energy)):
        raise SolverError("moments or weights contain NaN or Inf; check the calibration data")
    return moment, weight, cross, energy


def ridge_of(moment: Tensor, damping: float) -> float:
    """The damping added to the diagonal: a fraction of its mean, never so small that H is singular.

    A layer that saw only zeros gets 1: its refit then leaves the old weights as they are.
    """
    mean = moment.diagonal().mean().item()
    return max(damping, 1e-9) * mean if mean > 0 else 1.0


def _sum_outputs(per_output: Tensor, outputs: Tensor) -> Tensor:
    """Sum values (O, ...) over the outputs of each problem. Returns (B, ...)."""
    owned = (outputs >= 0).nonzero()
    summed = per_output.new_zeros(outputs.shape[0], *per_output.shape[1:])
    return summed.index_add_(0, owned[:, 0], per_output[outputs[owned[:, 0], owned[:, 1]]])
