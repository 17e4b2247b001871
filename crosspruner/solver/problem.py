"""The layer problem as every solver sees it: B independent choices among P groups."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.blocks import (
    block_norms,
    check_moments,
    gram_from_moments,
    take_outputs,
)
from crosspruner.solver.every_mask import EveryMask
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.stand_in import stand_in_of


@dataclass(frozen=True)
class LayerProblem:
    """What one layer's calibration pass and weights say about its groups.

    A row is one output group (crossbar grain) or one output FM (column grain). Only `gram` and
    `linear` are always there; a solver that needs more says so when it is missing.
    """

    given: Tensor | Callable[[], Tensor]
    """`gram`, or what makes it for who asks: solvers for refitted weights do without."""
    linear: Tensor
    """(B, P) h[a] = E <Z_a, Y>, against the dense network's outputs."""
    energy: Tensor | None = None
    """(B,) c = E ||Y||^2, the constant of the loss; only used to report relative losses."""
    norms: Tensor | None = None
    """(B, P) squared Frobenius norm of each group's weights."""
    saliency: Tensor | None = None
    """(B, P) first-order effect of each group on the task loss, sum of w * dloss/dw."""
    refit: RefitProblem | None = None
    """The same choice judged with refitted weights; None where the moments are not at hand."""

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
        saliency: Tensor | None = None,
    ) -> "LayerProblem":
        """Build both forms of a layer's problem, fixed and refitted weights, from its moments.

        Args:
            moment: (D, D) E X~' X~ of the layer's unrolled inputs as it will see them, pruned
                layers before it included.
            weight: (D, O) unrolled weights before pruning.
            group_rows: (P,) consecutive rows of each input group, >= 1 each, sum D.
            outputs: (B, n) int64, the columns of `weight` that share each problem's mask; -1 pads.
                Crossbar grain: the FMs of one output group. Column grain: (O, 1), one FM each.
            cross: (D, O) E X~' Y with the dense network's outputs Y, without bias. None:
                `moment @ weight`, the outputs of the same inputs.
            energy: (O,) E Y^2. None: that of Y = X~ W.
            damping: ridge of the refit as a fraction of the mean diagonal of `moment`, >= 0.
            saliency: (B, P), see `LayerProblem.saliency`.

        Raises:
            SolverError: wrong shapes, NaN or infinite entries, negative damping.
        """
        refit = RefitProblem.from_moments(
            moment, weight, group_rows, outputs, cross, energy, damping
        )
        moment, weight, cross, energy = check_moments(moment, weight, group_rows, cross, energy)
        gram, linear = gram_from_moments(moment, weight, group_rows, outputs, cross)
        return cls(
            given=gram,
            linear=linear,
            energy=take_outputs(energy[None], outputs).sum((1, 2)),
            norms=block_norms(weight, group_rows, outputs),
            saliency=saliency,
            refit=refit,
        )

    def __post_init__(self) -> None:
        rows = self.linear.shape
        if isinstance(self.given, Tensor):
            rows = self.given.shape[:2]
            if self.given.ndim != 3 or self.given.shape[2] != self.given.shape[1]:
                shape = tuple(self.given.shape)
                raise SolverError(f"gram must have shape (problems, groups, groups), got {shape}")
        for name in ("linear", "norms", "saliency"):
            value = getattr(self, name)
            if value is not None and value.shape != rows:
                raise SolverError(
                    f"{name} must have shape {tuple(rows)} to fit gram, got {tuple(value.shape)}"
                )

    @cached_property
    def gram(self) -> Tensor:
        """(B, P, P) G[a, b] = E <Z_a, Z_b>, inner products of the partial outputs."""
        return self.given if isinstance(self.given, Tensor) else self.given()

    @property
    def num_problems(self) -> int:
        return self.linear.shape[0]

    @property
    def num_groups(self) -> int:
        return self.linear.shape[1]

    @cached_property
    def every_mask(self) -> EveryMask | None:
        """The refitted losses of all masks, where groups are few enough for that."""
        return None if self.refit is None else EveryMask.of(self.refit)

    @cached_property
    def stand_in(self) -> RefitProblem | None:
        """What the refit form's groups are searched and judged on (`stand_in_of`)."""
        return None if self.refit is None else stand_in_of(self.refit)

    def relative_loss(self, mask: Tensor) -> Tensor:
        """Loss of a mask with the weights as they are, as a fraction of the outputs' energy.

        Args:
            mask: (B, P) bool.

        Returns:
            (B,) float64; 0 is exact, 1 is as bad as no output at all.

        Raises:
            SolverError: the problem was built without `energy`.
        """
        if self.energy is None:
            raise SolverError("relative_loss needs the problem's energy (E ||Y||^2); give it")
        beta = mask.to(torch.float64)
        product = (self.gram.to(torch.float64) @ beta.unsqueeze(-1)).squeeze(-1)
        loss = ((product - 2 * self.linear) * beta).sum(-1) + self.energy
        return loss / self.energy.clamp(min=torch.finfo(torch.float64).tiny)
