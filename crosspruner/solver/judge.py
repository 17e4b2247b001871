"""What single groups are worth at a mask, with the weights as they are or refitted.

Three judges of one interface: for weights that stay, on the Gram form; for weights that are
refitted, on the exact differences of the pivot table, or of all masks where groups are few.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.every_mask import EveryMask
from crosspruner.solver.pivot import PivotTable, batch_parts, table_entries
from crosspruner.solver.problem import LayerProblem
from crosspruner.solver.side_by_side import side_by_side
from crosspruner.solver.swap import gram_loss

SINGLE_ENTRIES = 2**22
"""Tables of more entries in all are held in float32, where pivots take half the time."""

LASTING_ENTRIES = 2**28
"""Tables of at most so many entries in all (float32: 1 GB) are kept between questions."""


class Judge:
    """What groups are worth while the weights stay as they are."""

    lasting = True
    """Whether asking again is cheap; else the tables, gigabytes of a wide layer, are made anew."""

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
    """What groups are worth when the weights are refitted, on the problem's stand-in."""

    def __init__(self, problem: LayerProblem) -> None:
        assert problem.stand_in is not None
        self.problem = problem.stand_in
        self._parts = batch_parts(self.problem)
        entries = self.problem.num_problems * table_entries(self.problem)
        self.lasting = entries <= LASTING_ENTRIES
        single = entries > SINGLE_ENTRIES
        self._dtypes = [torch.float32 if single else torch.float64] * len(self._parts)
        self._tables: dict[int, PivotTable] = {}

    @cached_property
    def removal_costs(self) -> Tensor:
        return self._ask(lambda table, _: _elimination(table))

    def worth(self, mask: Tensor) -> Tensor:
        return self._ask(lambda table, part: _at(table, mask[part]).scores())

    def loss(self, mask: Tensor) -> Tensor:
        return self._ask(lambda table, part: _at(table, mask[part]).loss.clone())

    def _ask(self, question: Callable[[PivotTable, slice], Tensor]) -> Tensor:
        """The answers of all parts of the batch, those float32 is too coarse for in float64."""

        def answer(index: int) -> Tensor:
            part = self._parts[index]
            try:
                return question(self._table(index), part)
            except SolverError:
                if self._dtypes[index] == torch.float64:
                    raise
                self._dtypes[index] = torch.float64
                self._tables.pop(index, None)
                return question(self._table(index), part)

        device = self.problem.target.device
        return torch.cat(side_by_side(answer, range(len(self._parts)), device))

    def _table(self, index: int) -> PivotTable:
        """The table of a part, kept at the masks that were looked at last if tables last."""
        if index in self._tables:
            return self._tables[index]
        table = PivotTable(self.problem.rows(self._parts[index]), self._dtypes[index])
        if self.lasting:
            self._tables[index] = table
        return table


class ExactJudge(Judge):
    """What groups are worth when the weights are refitted, where all masks have been tried."""

    def __init__(self, every_mask: EveryMask) -> None:
        self._every_mask = every_mask

    @cached_property
    def removal_costs(self) -> Tensor:
        """(B, P - 1) what the best mask of one group less costs more, down to one group."""
        return -self._every_mask.least[:, 1:].diff(dim=1).flip(1)

    def worth(self, mask: Tensor) -> Tensor:
        return self._every_mask.worth(mask)

    def loss(self, mask: Tensor) -> Tensor:
        return self._every_mask.loss(mask)


def _at(table: PivotTable, mask: Tensor) -> PivotTable:
    """The table, moved to a mask."""
    table.move_to(mask)
    return table


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
    if problem.refit is None:
        return Judge(problem)
    every_mask = problem.every_mask
    return RefitJudge(problem) if every_mask is None else ExactJudge(every_mask)
