"""What single groups are worth at a mask, with the weights as they are or refitted.

Two judges of one interface: for weights that stay, on the Gram form; for weights that are refitted,
on the exact differences of the pivot table.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from crosspruner.solver.pivot import PivotTable, batch_parts, table_entries
from crosspruner.solver.problem import LayerProblem
from crosspruner.solver.reduce import condense_targets, reduce_problem
from crosspruner.solver.refit import CHUNK_ENTRIES
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

    @cached_property
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
        return torch.stack(costs, 1) if costs else self.linear[:, :0]

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
        self._parts = batch_parts(self.problem)
        entries = self.problem.num_problems * table_entries(self.problem)
        self._keeps_tables = entries <= CHUNK_ENTRIES
        self._tables_kept: list[PivotTable] = []

    @cached_property
    def removal_costs(self) -> Tensor:
        return torch.cat([_elimination(table) for _, table in self._tables()])

    def worth(self, mask: Tensor) -> Tensor:
        scores = []
        for part, table in self._tables():
            table.move_to(mask[part])
            scores.append(table.scores())
        return torch.cat(scores)

    def loss(self, mask: Tensor) -> Tensor:
        losses = []
        for part, table in self._tables():
            table.move_to(mask[part])
            losses.append(table.loss.clone())
        return torch.cat(losses)

    def _tables(self) -> Iterator[tuple[slice, PivotTable]]:
        """The tables of parts of the batch.

        They are kept, at the masks that were looked at last, where memory allows. Those of wide
        layers take gigabytes: they are made anew each time, one after the other.
        """
        for index, part in enumerate(self._parts):
            if index < len(self._tables_kept):
                yield part, self._tables_kept[index]
                continue
            table = PivotTable(self.problem.rows(part))
            if self._keeps_tables:
                self._tables_kept.append(table)
            yield part, table


def _elimination(table: PivotTable) -> Tensor:
    """(B, P - 1) cost of each removal when the cheapest group goes first."""
    table.move_to(torch.ones_like(table.mask))
    costs = []
    for _ in range(table.groups - 1):
        before = table.loss.clone()
        table.eliminate(table.mask.sum(1) - 1)
        costs.append(table.loss - before)
    return torch.stack(costs, 1) if costs else table.loss[:, None][:, :0]


def judge_of(problem: LayerProblem) -> Judge:
    """The judge for refitted weights where the problem holds that form, else for fixed ones."""
    return Judge(problem) if problem.refit is None else RefitJudge(problem)
