"""The mask of a whole layer, on its budget of crossbars exactly.

The solvers know rows: so many groups of each output (group). Here the layer's budget is shared out
among the rows first, by what each removal would cost; then a solver chooses within each row; then,
at column grain, the choice is put onto the staircase of packed columns.
"""

import torch
from torch import Tensor

from crosspruner.solver import LayerProblem, choose_mask
from crosspruner.solver.pivot import PivotTable
from crosspruner.solver.reduce import reduce_problem
from crosspruner.solver.swap import gram_loss
from crosspruner.sparsity import GroupLayout, project

# Stand-in problems of this many directions per group rank the columns of refitted layers.
_RANK = 4

_ROUNDS = 4


@torch.no_grad()
def choose_layer_mask(
    problem: LayerProblem,
    blocks: int,
    layout: GroupLayout,
    solver: str = "lgd_rpp",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose what a layer keeps.

    Args:
        problem: of the layer, one row per unit. If it holds the refit form, the mask is chosen for
            weights that will be refitted, where the solver can.
        blocks: blocks of crossbars to keep, layout.fewest_blocks..layout.blocks.
        layout: the layer's groups.
        solver: a name in `solver.SOLVERS`.
        generator: source of all randomness.

    Returns:
        (U, P) bool with layout.blocks_of(mask) == blocks, no row empty.

    Raises:
        SolverError: unknown solver, or the problem lacks what it needs.
        BudgetError: `blocks` is out of range.
    """
    if blocks == layout.blocks:
        return torch.ones(layout.shape, dtype=torch.bool)
    if solver == "random":
        return project(torch.rand(layout.shape, generator=generator), blocks, layout)
    if solver == "magnitude" and problem.norms is not None:
        return project(problem.norms.sqrt().cpu(), blocks, layout)
    per_block = 1 if layout.grain == "crossbar" else layout.kout
    groups = min(blocks * per_block, layout.units * layout.input_groups)
    judge = _judge(problem)
    keep = share_out(judge.removal_costs(), groups)
    refitted = problem.refit is not None
    mask = choose_mask(problem, keep, solver, generator, refit=refitted)
    if layout.grain == "crossbar":
        return mask.cpu()
    return _onto_staircase(judge, mask, blocks, layout)


def share_out(costs: Tensor, groups: int) -> Tensor:
    """How many groups each row keeps so that the removals cost least in total.

    Args:
        costs: (U, P - 1) rise of the loss with each further removal.
        groups: to keep in all, U..U * P.

    Returns:
        (U,) int64, 1..P each, sum `groups`.
    """
    units, removals = costs.shape
    # A removal is open only after the ones before it, so none may look cheaper than they.
    rising = costs.cummax(1).values
    order = torch.argsort(rising.flatten(), stable=True)[: units * (removals + 1) - groups]
    removed = torch.bincount(order // removals, minlength=units)
    return removals + 1 - removed


def _onto_staircase(judge: "_Judge", mask: Tensor, blocks: int, layout: GroupLayout) -> Tensor:
    """The mask on the budget that keeps most of what its columns are worth.

    Each projection changes what the columns are worth to each other, so they are ranked anew a few
    times and the mask of least loss is taken.
    """
    best, least = mask.cpu(), torch.inf
    for _ in range(_ROUNDS):
        mask = project(judge.worth(mask).cpu(), blocks, layout).to(mask.device)
        loss = float(judge.loss(mask).sum())
        if loss >= least:
            break
        best, least = mask.cpu(), loss
    return best


class _Judge:
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


class _RefitJudge(_Judge):
    """What groups are worth when the weights are refitted, on a stand-in of few directions."""

    def __init__(self, problem: LayerProblem) -> None:
        assert problem.refit is not None
        whole = problem.refit
        rank = max(_RANK, 2 * whole.target.shape[2])
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
        return self.table.loss


def _judge(problem: LayerProblem) -> _Judge:
    return _Judge(problem) if problem.refit is None else _RefitJudge(problem)
