"""The refitted losses of all masks of a layer of few groups.

A wide crossbar leaves the first convolutions of a network with five or eight groups. Then all there
is to ask about their masks is looked up, without a stand-in or a search.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosspruner.solver.exhaustive import (
    MAX_FLOPS,
    MAX_MASKS,
    masks_of,
    refitted_losses,
    trial_flops,
)
from crosspruner.solver.refit import RefitProblem


@dataclass(frozen=True)
class EveryMask:
    """The refitted loss of every mask of B problems of P groups."""

    losses: Tensor
    """(B, 2^P) float64: by the number of groups kept, then in lexicographic order of these."""
    masks: Tensor
    """(2^P, P) bool, in the same order."""

    @classmethod
    def of(cls, problem: RefitProblem) -> "EveryMask | None":
        """All losses, or None where they take too many operations, or moments are not shared.

        Raises:
            SolverError: the moment is too close to singular.
        """
        groups = problem.num_groups
        if not problem.shared or 2**groups > MAX_MASKS:
            return None
        if sum(trial_flops(problem, keep) for keep in range(groups + 1)) > MAX_FLOPS:
            return None
        counts = range(groups + 1)
        losses = torch.cat([refitted_losses(problem, keep) for keep in counts], 1)
        masks = torch.cat([masks_of(groups, keep) for keep in counts])
        return cls(losses, masks.to(losses.device))

    def loss(self, mask: Tensor) -> Tensor:
        """(B,) the loss of one mask (B, P) of each problem."""
        return self.losses.gather(1, self._places(mask).unsqueeze(1)).squeeze(1)

    def best(self, keep: Tensor) -> Tensor:
        """(B, P) the mask of least loss with `keep` (B,) ones."""
        chosen = torch.zeros_like(self.masks[:1]).repeat(len(keep), 1)
        for number in keep.unique().tolist():
            rows = (keep == number).nonzero().squeeze(1)
            those = self._of_count(number)
            chosen[rows] = self.masks[those[self.losses[rows][:, those].argmin(1)]]
        return chosen

    @property
    def least(self) -> Tensor:
        """(B, P + 1) the least loss with 0..P groups kept."""
        counts = range(self.masks.shape[1] + 1)
        return torch.stack([self.losses[:, self._of_count(k)].min(1).values for k in counts], 1)

    def worth(self, mask: Tensor) -> Tensor:
        """(B, P) rise of the loss without each kept group, its fall with each pruned one, >= 0."""
        groups = mask.shape[1]
        toggled = mask.unsqueeze(1) ^ torch.eye(groups, dtype=torch.bool, device=mask.device)
        others = self.losses.gather(1, self._places(toggled))
        return (others - self.loss(mask).unsqueeze(1)).abs()

    def _of_count(self, number: int) -> Tensor:
        return (self.masks.sum(1) == number).nonzero().squeeze(1)

    def _places(self, mask: Tensor) -> Tensor:
        """Where masks (..., P) stand in the order of the losses."""
        bits = 2 ** torch.arange(mask.shape[-1], device=mask.device)
        place = torch.empty(len(self.masks), dtype=torch.int64, device=mask.device)
        place[(self.masks * bits).sum(1)] = torch.arange(len(self.masks), device=mask.device)
        return place[(mask * bits).sum(-1)]
