"""What single groups are worth at a mask, with the weights as they are or refitted.

Two judges of one interface: for weights that stay, on the Gram form; for weights that are refitted,
on the exact differences of the pivot table.
"""

import torch
from torch import Tensor

from crosspruner.solver.pivot import PivotTable
from crosspruner.solver.problem import LayerProblem
from crosspruner.solver.reduce import condense_targets, reduce_problem
from crosspruner.solver.swap import gram_loss

MOST_TARGETS = 8
"""Outputs of a problem that are looked at; more are condensed to their main directions."""

RANK = 4
"""Directions per group of the stand-in that large refits are judged on, at least."""


class Judge:
    """What groups are worth while the weights stay as they are."""

    def __init__(self, problem: LayerProblem) -> None:
        self.gram, self.linear = problem.gram, problem.linear
        self.own = self.gram.diagonal(dim1=1, dim2=2)

    def removal_costs(self) -> Tensor:
        """(U, P - 1) cost of each removal when the cheapest group goes first."""
        mask = torch.ones_like(self.linear, dtype=torch.bool)
        residual = self.gram.sum(2) - self.linear
        row = torch.arange(len(mask), device=mask.device)
        costs = []
        for _ in range(mask.shape[1] - 1):
            cost, group = (self.own - 2 * residual).masked_fill(~mask, torch.inf).min(1)
            costs.append(cost)
            mask[row, group] = False
            residual = residual - self.gram[row, group]
        return torch.stack(costs, 1)

    def worth(self, mask: Tensor) -> Tensor:
        """(U, P) rise of the loss without each kept group, its fall with each pruned one."""
        slope = 2 * ((self.gram @ mask.to(self.gram).unsqueeze(2)).squeeze(2) - self.linear)
        return torch.where(mask, self.own - slope, -self.own - slope)

    def loss(self, mask: Tensor) -> Tensor:
        """(U,) loss of a mask, up to a constant."""
        return gram_loss(self.gram, self.linear, mask)


class RefitJudge(Judge):
    """What groups are worth when the weights are refitted, on a stand-in of few directions."""

    def __init__(self, problem: LayerProblem) -> None:
        assert problem.refit is not None
        whole = condense_targets(problem.refit, MOST_TARGETS)
        rank = max(RANK, 2 * whole.target.shape[2])
        self.problem = whole if rank >= whole.group_size else reduce_problem(whole, rank)
        self.table = PivotTable(self.problem)

    def removal_costs(self) -> Tensor:
        costs = []
        for _ in range(self.problem.num_groups - 1):
            before = self.table.loss.clone()
            self.table.eliminate(self.table.mask.sum(1) - 1)
            costs.append(self.table.loss - before)
        return torch.stack(costs, 1)

    def worth(self, mask: Tensor) -> Tensor:
        self.table.move_to(mask)
        return self.table.scores()

    def loss(self, mask: Tensor) -> Tensor:
        self.table.move_to(mask)
        return self.table.loss.clone()


def judge_of(problem: LayerProblem) -> Judge:
    """The judge for refitted weights where the problem holds that form, else for fixed ones."""
    return Judge(problem) if problem.refit is None else RefitJudge(problem)
