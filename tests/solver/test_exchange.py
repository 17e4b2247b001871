"""Trades between the rows of a layer."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.pruning.mask_choice import choose_layer_mask, pools
from crosspruner.solver import LayerProblem
from crosspruner.solver.exchange import exchange
from crosspruner.solver.judge import RefitJudge, judge_of
from crosspruner.sparsity import GroupLayout, project


def worth(values):
    """A layer whose groups do not know of each other: each is worth what it says."""
    own = torch.tensor(values, dtype=torch.float64)
    return LayerProblem(torch.diag_embed(own), own)


def marks(rows):
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def layer(outputs=6, groups=4, width=2, seed=0, refit=True):
    generator = torch.Generator().manual_seed(seed)
    size = groups * width
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    inputs = torch.randn(80, size, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(size, outputs, generator=generator, dtype=torch.float64)
    rows, each = torch.full((groups,), width), torch.arange(outputs).unsqueeze(1)
    problem = LayerProblem.from_moments(inputs.T @ inputs / 80, weight, rows, each)
    return problem if refit else LayerProblem(problem.gram, problem.linear, problem.energy)


def test_columns_trade_within_their_input_group():
    judge = judge_of(worth([[1.0, 5.0], [4.0, 2.0], [9.0, 3.0]]))
    layout = GroupLayout("layer", "column", 3, 2, 1, 1, 1)
    assert pools(layout).tolist() == [[0, 1]] * 3
    # Input group 0: the 9 for the 1. Group 1: the 5 for the 2; the 4 stays, which row 1 lives by.
    found = exchange(judge, marks(["x.", "xx", ".x"]), pools(layout))
    assert found.tolist() == marks([".x", "x.", "xx"]).tolist()


def test_blocks_trade_across_the_whole_layer():
    judge = judge_of(worth([[1.0, 5.0], [4.0, 2.0], [9.0, 3.0]]))
    layout = GroupLayout("layer", "crossbar", 3, 2, 1, 1, 1)
    assert pools(layout).tolist() == [[0, 0]] * 3
    # Row 1 gives its 2 for the 5 of row 0, which then can spare its 1 for the 3 of row 2.
    found = exchange(judge, marks(["x.", "xx", "x."]), pools(layout))
    assert found.tolist() == marks([".x", "x.", "xx"]).tolist()


def test_a_row_does_not_trade_with_itself():
    # The cheapest and the most valuable block are of row 0: it gives the 1 for the 4 of row 1, and
    # takes its 9 for the 2 of row 2.
    judge = judge_of(worth([[1.0, 6.0, 9.0], [7.0, 4.0, 3.0], [8.0, 2.0, 1.0]]))
    layout = GroupLayout("layer", "crossbar", 3, 3, 1, 1, 1)
    found = exchange(judge, marks(["xx.", "x..", "xx."]), pools(layout))
    assert found.tolist() == marks([".xx", "xx.", "x.."]).tolist()


def test_lanes_do_not_trade_with_each_other():
    layout = GroupLayout("layer", "column", 4, 2, 2, 1, 1)
    assert pools(layout).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    judge = judge_of(worth([[1.0, 1.0], [1.0, 1.0], [9.0, 9.0], [9.0, 9.0]]))
    mask = marks(["xx", "x.", "x.", ".x"])
    assert torch.equal(exchange(judge, mask, pools(layout)), mask)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("seed", range(4))
def test_no_trade_is_left_that_lowers_the_loss(refit, grain, seed):
    judge = judge_of(layer(seed=seed, refit=refit))
    pool = pools(GroupLayout("layer", grain, 6, 8, 1, 2, 1))
    start = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed)).argsort(1) < 2
    mask = exchange(judge, start, pool)
    assert torch.equal(*(torch.bincount(pool[m]) for m in (start, mask)))
    least = float(judge.loss(mask).sum())
    assert least <= float(judge.loss(start).sum())
    places = list(itertools.product(range(6), range(4)))
    for (i, a), (j, b) in itertools.permutations(places, 2):
        open_to_trade = mask[i, a] and not mask[j, b] and i != j and pool[i, a] == pool[j, b]
        if open_to_trade and mask[i].sum() > 1:
            other = mask.clone()
            other[i, a], other[j, b] = False, True
            assert float(judge.loss(other).sum()) >= least * (1 - 1e-4)


@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from(["crossbar", "column"]))
@settings(max_examples=30, deadline=None)
def test_trades_keep_the_budget_and_every_row(seed, kout, grain):
    layout = GroupLayout("layer", grain, 6, 8, 1, 2, kout)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(6 if grain == "column" else layout.units, 4, generator=generator)
    blocks = layout.fewest_blocks + seed % (layout.blocks - layout.fewest_blocks + 1)
    start = project(scores, blocks, layout)
    judge = judge_of(worth(torch.rand(*layout.shape, generator=generator).tolist()))
    mask = exchange(judge, start, pools(layout))
    assert layout.blocks_of(mask) == blocks
    assert bool(mask.any(1).all())
    assert float(judge.loss(mask).sum()) <= float(judge.loss(start).sum())


@pytest.mark.parametrize("solver", ["greedy", "lgd_rpp", "obs_group"])
def test_solvers_that_search_go_on_between_the_rows(solver):
    layout = GroupLayout("layer", "column", 24, 16, 1, 2, 4)
    problems = [layer(outputs=24, groups=8, seed=seed) for seed in range(4)]

    def losses(trade):
        found = []
        for problem in problems:
            generator = torch.Generator().manual_seed(0)
            mask = choose_layer_mask(problem, 20, layout, solver, generator, trade=trade)
            assert layout.blocks_of(mask) == 20
            found.append(float(problem.refit.solve(mask)[1].sum()))
        return found

    traded, alone = losses(True), losses(False)
    assert all(after <= before for after, before in zip(traded, alone, strict=True))
    assert sum(traded) < 0.99 * sum(alone)


@pytest.mark.parametrize("solver", ["lasso", "taylor"])
def test_the_other_solvers_choose_by_themselves(solver):
    layout = GroupLayout("layer", "column", 24, 16, 1, 2, 4)
    problem = layer(outputs=24, groups=8)
    masks = [choose_layer_mask(problem, 20, layout, solver, trade=t) for t in (True, False)]
    assert torch.equal(*masks)


def test_a_judge_that_float32_is_too_coarse_for_goes_on_in_float64(monkeypatch):
    problem, mask = layer(seed=2), torch.rand(6, 4).argsort(1) < 2
    moment = problem.refit.moment
    moment[1], moment[:, 1] = moment[0], moment[:, 0]
    moment[1, 1] = moment[0, 0] * (1 + 1e-12)
    exact = RefitJudge(problem)
    expected = exact.removal_costs, exact.worth(mask), exact.loss(mask)
    monkeypatch.setattr("crosspruner.solver.judge.SINGLE_ENTRIES", 0)
    coarse = RefitJudge(problem)
    assert coarse._dtypes[0] == torch.float32
    found = coarse.removal_costs, coarse.worth(mask), coarse.loss(mask)
    assert coarse._dtypes[0] == torch.float64
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_judge_in_float32_says_nearly_the_same(monkeypatch):
    problem, mask = layer(seed=2), torch.rand(6, 4).argsort(1) < 2
    exact = RefitJudge(problem)
    monkeypatch.setattr("crosspruner.solver.judge.SINGLE_ENTRIES", 0)
    coarse = RefitJudge(problem)
    torch.testing.assert_close(coarse.worth(mask), exact.worth(mask), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(coarse.loss(mask), exact.loss(mask), rtol=1e-3, atol=1e-4)
