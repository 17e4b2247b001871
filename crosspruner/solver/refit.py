"""The layer problem whose kept weights are refitted: normal equations per problem.

For the kept rows S the best weights of problem b solve H_SS V_S = T_S, where

    H = E X~' X~ + damping I         moment of the layer's (pruned) inputs
    T = E X~' Y  + damping W         cross moment with the dense outputs, pulled to the old weights

and the loss is tr(V' H V) - 2 tr(V' T) + c, pruned rows of V being zero. Its kept weights cost
their distance to the old ones; a pruned group costs its old weights too, so H is positive definite
and one formula covers dead inputs and fewer samples than inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.blocks import check_moments, padded_rows, ridge_of, take_outputs
from crosspruner.solver.factor import cholesky
from crosspruner.solver.few_patches import FewPatches
from crosspruner.solver.shared_matrix import diagonal_blocks, times
from crosspruner.solver.side_by_side import side_by_side
from crosspruner.solver.supports import solve_supports


@dataclass(frozen=True)
class RefitProblem:
    """B choices among P groups of `d` rows each, judged with refitted weights.

    Groups of unequal size are padded with rows that touch nothing: zero in `target`, the unit
    diagonal in `moment`. Problems of fewer outputs are padded with zero columns.
    """

    given: Tensor | None
    """(D, D) shared by all problems, or (B, D, D); float64, positive definite; D = P * d. None
    where there are patches: see `moment`."""
    target: Tensor
    """(B, D, n) float64."""
    constant: Tensor
    """(B,) float64, the loss of V = 0."""
    num_groups: int
    """P."""
    patches: Tensor | None = None
    """(N, D) float64 inputs, fewer than rows, of a shared moment patches' patches / N + ridge I:
    products with it, its inverse and refits cost less by them."""
    ridge: float = 0.0
    """> 0 where there are patches."""
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        ridge = ridge_of(moment, damping)
        damped = (moment + moment.mT) / 2
        damped.diagonal().add_(ridge)
        place, width = padded_rows(group_rows)
        size = len(group_rows) * width
        padded = torch.eye(size, dtype=moment.dtype, device=moment.device)
        padded[place[:, None], place] = damped
        target = moment.new_zeros(size, weight.shape[1])
        target[place] = cross + ridge * weight
        total = energy + ridge * weight.square().sum(0)
        constant = take_outputs(total[None], outputs).sum((1, 2))
        return cls(padded, take_outputs(target, outputs), constant, len(group_rows))

    @property
    def shared(self) -> bool:
        """Whether all problems have one moment."""
        return self.given is None or self.given.ndim == 2

    @property
    def moment(self) -> Tensor:
        """(D, D) where it is shared, else (B, D, D). Made of the patches if there are any, once,
        which takes gigabytes where rows are many."""
        if self.given is not None:
            return self.given
        return self.once("moment", lambda: self.moment_of(torch.arange(self.target.shape[1])))

    def moment_of(self, rows: Tensor) -> Tensor:
        """(..., s, s) the shared moment of some rows (..., s), of the patches if there are any."""
        if self.given is not None:
            return self.given[rows.unsqueeze(-1), rows.unsqueeze(-2)]
        assert self.patches is not None
        inputs = self.patches[:, rows].movedim(0, -1)
        part = inputs @ inputs.mT / len(self.patches)
        part.diagonal(dim1=-2, dim2=-1).add_(self.ridge)
        return part

    @property
    def num_problems(self) -> int:
        return self.target.shape[0]

    @property
    def group_size(self) -> int:
        """Rows of a group, padding included: d."""
        return self.target.shape[1] // self.num_groups

    @property
    def inverse(self) -> Tensor:
        """H^-1, of the shape of `moment`; those of several moments side by side.

        Raises:
            SolverError: the moment is too close to singular.
        """
        return self.once("inverse", self._invert)

    def _invert(self) -> Tensor:
        if self.given is not None and not self.shared:
            each = -(-len(self.given) // torch.get_num_threads())
            parts = self.given.split(max(1, each))
            return torch.cat(side_by_side(_inverse, parts, self.given.device))
        if self.patches is None:
            return _inverse(self.moment)
        half = self.half
        inverse = half.mT @ half
        inverse.neg_().diagonal().add_(1)
        return inverse.div_(self.ridge)

    @property
    def inverse_blocks(self) -> Tensor:
        """(P, d, d) the blocks of H^-1 on the diagonal, float64, of a shared moment."""
        if self.patches is None:
            return diagonal_blocks(self.inverse, self.num_groups)
        half = self.half.unflatten(1, (self.num_groups, -1)).transpose(0, 1)
        blocks = half.mT @ half
        blocks.neg_().diagonal(dim1=1, dim2=2).add_(1)
        return blocks.div_(self.ridge)

    @property
    def half(self) -> Tensor:
        """(N, D) F^-1 X with F F' = N r I + X X': H^-1 = (I - half' half) / r (Woodbury)."""

        def make() -> Tensor:
            assert self.patches is not None
            inner = self.patches @ self.patches.mT
            inner.diagonal().add_(len(inner) * self.ridge)
            return torch.linalg.solve_triangular(cholesky(inner), self.patches, upper=False)

        return self.once("half", make)

    @property
    def few(self) -> FewPatches | None:
        """The same problem among its patches, where it has some."""
        return self.once("few", lambda: FewPatches.of(self.patches, self.group_size, self.ridge))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What is made of the moment alone, once for all problems that share it."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def inverse_times(self, columns: Tensor) -> Tensor:
        """H^-1 times columns (B, D, m), among the patches where there are few.

        Raises:
            SolverError: the moment is too close to singular.
        """
        if self.patches is None:
            return times(self.inverse, columns)
        rows = columns.mT.flatten(0, 1)
        solved = (rows - (rows @ self.half.mT) @ self.half) / self.ridge
        return solved.unflatten(0, (len(columns), columns.shape[2])).mT

    def rows(self, part: slice | Tensor) -> "RefitProblem":
        """Some problems of the batch, by a slice or an index (b,)."""
        given = self.given if self.given is None or self.shared else self.given[part]
        rows = replace(self, given=given, target=self.target[part], constant=self.constant[part])
        if self.shared:
            return rows.sharing(self)
        if "inverse" in self._made:
            rows._made["inverse"] = self.inverse[part]
        return rows

    def merged(self, which: Tensor) -> "RefitProblem":
        """Problems (b, c) of a shared moment, c at a time under one mask: b problems."""
        target = self.target[which].transpose(1, 2).flatten(2)
        merged = replace(self, target=target, constant=self.constant[which].sum(1))
        return merged.sharing(self)

    def sharing(self, other: "RefitProblem") -> "RefitProblem":
        """This problem, which makes once with another what is made of their one moment."""
        object.__setattr__(self, "_made", other._made)
        return self

    def solve(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Refit the kept weights: by conjugate gradients where the supports of a large moment are
        many (`deflated`), else by Cholesky factors of H_SS, of (H^-1) on the pruned rows, or of a
        system among the patches, whichever are smaller.

        Args:
            mask: (B, P) bool.

        Returns:
            weights (B, D, n), zero where pruned, and the loss (B,), both float64; exact by factors,
            by conjugate gradients as far as `deflated.TOLERANCE`.

        Raises:
            SolverError: the moment is too close to singular.
        """
        return solve_supports(self, mask)


def _inverse(matrix: Tensor) -> Tensor:
    """Of (..., D, D), row after row."""
    return torch.cholesky_inverse(cholesky(matrix)).mT
