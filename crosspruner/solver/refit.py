"""The layer problem whose kept weights are refitted: normal equations per problem.

For the kept rows S the best weights of problem b solve H_SS V_S = T_S, where

    H = E X~' X~ + damping I         moment of the layer's (pruned) inputs
    T = E X~' Y  + damping W         cross moment with the dense outputs, pulled to the old weights

and the loss is tr(V' H V) - 2 tr(V' T) + c, pruned rows of V being zero. Its kept weights cost
their distance to the old ones; a pruned group costs its old weights too, so H is positive definite
and one formula covers dead inputs and fewer samples than inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.blocks import check_moments, padded_rows, ridge_of, take_outputs

# One chunk of a batch holds at most this many entries (float64: 512 MB).
CHUNK_ENTRIES = 2**26


@dataclass(frozen=True)
class RefitProblem:
    """B choices among P groups of `d` rows each, judged with refitted weights.

    Groups of unequal size are padded with rows that touch nothing: zero in `target`, the unit
    diagonal in `moment`. Problems of fewer outputs are padded with zero columns.
    """

    moment: Tensor
    """(D, D) shared by all problems, or (B, D, D); float64, positive definite; D = P * d."""
    target: Tensor
    """(B, D, n) float64."""
    constant: Tensor
    """(B,) float64, the loss of V = 0."""
    num_groups: int
    """P."""

    @classmethod
    def from_moments(
        cls,
        moment: Tensor,
        weight: Tensor,
        group_rows: Tensor,
        outputs: Tensor,
        cross: Tensor | None = None,
        energy: Tensor | None = None,
        damping: float = 1e-2,
    ) -> "RefitProblem":
        """Build the problem from a layer's moments.

        Args:
            moment: (D, D) E X~' X~ of the layer's unrolled inputs.
            weight: (D, O) unrolled weights before pruning.
            group_rows: (P,) consecutive rows of each group, >= 1 each, sum D.
            outputs: (B, n) int64, the columns of `weight` that share each problem's mask; -1 pads.
            cross: (D, O) E X~' Y with the dense network's outputs Y. None: `moment @ weight`.
            energy: (O,) E Y^2. None: that of Y = X~ W.
            damping: ridge as a fraction of the mean diagonal of `moment`, >= 0.

        Raises:
            SolverError: wrong shapes, NaN or infinite entries.
        """
        moment, weight, cross, energy = check_moments(moment, weight, group_rows, cross, energy)
        if not damping >= 0:
            raise SolverError(f"damping must be >= 0 (0.01 is usual), got {damping}")
        rows = moment.shape[0]
        ridge = ridge_of(moment, damping)
        damped = (moment + moment.mT) / 2 + ridge * torch.eye(rows, dtype=moment.dtype)
        place, width = padded_rows(group_rows)
        size = len(group_rows) * width
        padded = torch.eye(size, dtype=moment.dtype)
        padded[place[:, None], place] = damped
        target = moment.new_zeros(size, weight.shape[1])
        target[place] = cross + ridge * weight
        total = energy + ridge * weight.square().sum(0)
        constant = take_outputs(total[None], outputs).sum((1, 2))
        return cls(padded, take_outputs(target, outputs), constant, len(group_rows))

    @property
    def num_problems(self) -> int:
        return self.target.shape[0]

    @property
    def group_size(self) -> int:
        """Rows of a group, padding included: d."""
        return self.target.shape[1] // self.num_groups

    def rows(self, part: slice | Tensor) -> "RefitProblem":
        """Some problems of the batch, by a slice or an index (b,)."""
        moment = self.moment if self.moment.ndim == 2 else self.moment[part]
        return RefitProblem(moment, self.target[part], self.constant[part], self.num_groups)

    def solve(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Refit the kept weights exactly, by Cholesky on the kept rows.

        Args:
            mask: (B, P) bool.

        Returns:
            weights (B, D, n), zero where pruned, and the loss (B,), both float64.
        """
        weights = torch.zeros_like(self.target)
        loss = self.constant.clone()
        kept = mask.sum(1)
        for number in kept.unique().tolist():
            same = (kept == number).nonzero().squeeze(1)
            size = number * self.group_size
            chunk = max(1, CHUNK_ENTRIES // max(1, 2 * size * size))
            for problems in same.split(chunk) if number else ():
                solution, gain, rows = self._solve_chunk(problems, mask)
                weights[problems[:, None], rows] = solution
                loss[problems] -= gain
        return weights, loss

    def _solve_chunk(self, problems: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Problems (b,) that keep the same number of groups; the rows (b, s) they keep."""
        kept = mask[problems].nonzero()[:, 1].view(len(problems), -1)
        within = torch.arange(self.group_size, device=mask.device)
        rows = (kept.unsqueeze(2) * self.group_size + within).flatten(1)
        if self.moment.ndim == 2:
            system = self.moment[rows[:, :, None], rows[:, None, :]]
        else:
            system = self.moment[problems[:, None, None], rows[:, :, None], rows[:, None, :]]
        target = self.target[problems[:, None], rows]
        factor = torch.linalg.cholesky(system)
        half = torch.linalg.solve_triangular(factor, target, upper=False)
        solution = torch.linalg.solve_triangular(factor.mT, half, upper=True)
        return solution, half.square().sum((1, 2)), rows
