"""The mask of a whole layer, on its budget of crossbars exactly.

The solvers know rows: so many groups of each output (group). Here the layer's budget is shared out
among the rows first, by what each removal would cost; then a solver chooses within each row; then,
at column grain, the choice is put onto the staircase of packed columns; then, after solvers that
search, rows trade groups while the loss of the layer falls.
"""

import torch
from torch import Tensor

from crosspruner.solver import LayerProblem, choose_mask, share_out
from crosspruner.solver.allocate import rising_costs
from crosspruner.solver.exchange import exchange
from crosspruner.solver.judge import Judge, judge_of
from crosspruner.sparsity import GroupLayout, project

_ROUNDS = 4

SEARCHING = ("greedy", "lgd_rpp", "obs_group")
"""Solvers that end in a local search, which goes on between the rows of a layer."""


@torch.no_grad()
def choose_layer_mask(
    problem: LayerProblem,
    blocks: int,
    layout: GroupLayout,
    solver: str = "lgd_rpp",
    generator: torch.Generator | None = None,
    judge: Judge | None = None,
    trade: bool = True,
) -> Tensor:
    """Choose what a layer keeps.

    Args:
        problem: of the layer, one row per unit. If it holds the refit form, the mask is chosen for
            weights that will be refitted, where the solver can.
        blocks: blocks of crossbars to keep, layout.fewest_blocks..layout.blocks.
        layout: the layer's groups.
        solver: a name in `solver.SOLVERS`.
        generator: source of all randomness, on the CPU.
        judge: `judge_of(problem)`, for who asks several times; None = made here.
        trade: let the rows trade groups after solvers that search (`exchange`).

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
    judge = judge or judge_of(problem)
    keep = share_out(judge.removal_costs, groups)
    refitted = problem.refit is not None
    if generator is not None and problem.linear.device != generator.device:
        # The draws are made where the problem is: by a generator of that device, seeded by ours.
        seed = int(torch.randint(2**31, (1,), generator=generator))
        generator = torch.Generator(problem.linear.device).manual_seed(seed)
    mask = choose_mask(problem, keep, solver, generator, refit=refitted)
    if layout.grain == "column":
        mask = _onto_staircase(judge, mask, blocks, layout)
    if trade and solver in SEARCHING:
        mask = exchange(judge, mask, pools(layout).to(mask.device))
    return mask.cpu()


@torch.no_grad()
def removal_curve(problem: LayerProblem, layout: GroupLayout) -> Tensor:
    """What a layer's blocks cost, the cheapest first.

    Args:
        problem: of the layer, one row per unit.
        layout: the layer's groups.

    Returns:
        (blocks - fewest_blocks,) float64, never falling: rise of the loss with each further block
        removed. At column grain a block is the next cheapest columns: Kout of them, or what is left
        of a lane's outputs for its last block of each input group; those blocks go first.
    """
    rising = rising_costs(judge_of(problem).removal_costs).flatten().sort().values
    blocks = layout.blocks - layout.fewest_blocks
    if layout.grain == "crossbar" or not blocks:
        return rising[:blocks]
    outputs = layout.out_channels // layout.lanes
    last = outputs - (layout.lane_groups - 1) * layout.kout  # columns of a last block
    small = min(blocks, layout.lanes * layout.input_groups)
    columns, full = small * last, blocks - small
    first = rising[:columns].view(small, last).sum(1)
    others = rising[columns : columns + full * layout.kout].view(full, layout.kout).sum(1)
    # Where removals gain, a larger block gains more than the small ones before it.
    return torch.cat([first, others]).cummax(0).values


def _onto_staircase(judge: Judge, mask: Tensor, blocks: int, layout: GroupLayout) -> Tensor:
    """The mask on the budget that keeps most of what its columns are worth.

    Each projection changes what the columns are worth to each other, so they are ranked anew a few
    times and the mask of least loss is taken.
    """
    best, least = mask, torch.inf
    for _ in range(_ROUNDS):
        mask = project(judge.worth(mask).cpu(), blocks, layout).to(mask.device)
        loss = float(judge.loss(mask).sum())
        if loss >= least:
            break
        best, least = mask, loss
    return best


def pools(layout: GroupLayout) -> Tensor:
    """(U, P) int64, the sum on which each group's crossbar depends: at crossbar grain one for all,
    at column grain the columns of its lane and input group."""
    if layout.grain == "crossbar":
        return torch.zeros(layout.shape, dtype=torch.int64)
    lane = torch.arange(layout.units) // (layout.units // layout.lanes)
    return lane.unsqueeze(1) * layout.input_groups + torch.arange(layout.input_groups)
