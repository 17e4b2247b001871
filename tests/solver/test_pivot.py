"""Pivot tables: they agree with solving anew, and a descent ends where no exchange helps."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import SolverError
from crosspruner.solver import RefitProblem, lgd_rpp_refit, obs_group, pivot
from crosspruner.solver.factor import cholesky
from crosspruner.solver.pivot import PivotTable

from .test_refit import random_layer, random_problem


@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 100),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_pivots_agree_with_solving_anew(rows, seed, data):
    moment, weight, group_rows = random_layer(rows, 5, seed=seed)
    problem = RefitProblem.from_moments(
        moment, weight, group_rows, torch.tensor([[0, 1], [4, 2], [3, -1]])
    )
    table = PivotTable(problem)
    masks = st.lists(st.booleans(), min_size=3 * len(rows), max_size=3 * len(rows))
    for _ in range(2):
        mask = torch.tensor(data.draw(masks)).view(3, len(rows))
        table.move_to(mask)
        assert torch.equal(table.mask, mask)
        loss = problem.solve(mask)[1]
        assert torch.allclose(table.loss, loss, rtol=1e-7, atol=1e-7)
        worth = table.scores()
        for group in range(len(rows)):
            other = mask.clone()
            other[:, group] ^= True
            change = (problem.solve(other)[1] - loss).abs()
            assert torch.allclose(worth[:, group], change, rtol=1e-6, atol=1e-7)


def test_best_swap_is_the_best_of_all_exchanges():
    problem = random_problem(groups=6, height=3)
    table = PivotTable(problem)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    table.move_to(mask)
    change, kept, pruned = table.best_swap(shortlist=6)
    loss = problem.solve(mask)[1]
    assert change[2] == torch.inf
    for row in range(2):
        changes = {}
        for a, b in itertools.product(
            mask[row].nonzero().flatten().tolist(), (~mask[row]).nonzero().flatten().tolist()
        ):
            other = mask.clone()
            other[row, a], other[row, b] = False, True
            changes[a, b] = (problem.solve(other)[1] - loss)[row].item()
        best = min(changes, key=changes.__getitem__)
        assert (kept[row].item(), pruned[row].item()) == best
        assert change[row].item() == pytest.approx(changes[best])


def test_rows_may_be_toggled_in_any_order():
    problem = random_problem(groups=5, height=2, batch=3)
    table = PivotTable(problem)
    table.toggle(torch.tensor([4, 0, 1]), torch.tensor([2, 0, 1]))
    table.toggle(torch.tensor([3, 2]), torch.tensor([2, 0]))
    pruned = (~table.mask).nonzero().tolist()
    assert pruned == [[0, 0], [0, 2], [1, 1], [2, 3], [2, 4]]
    torch.testing.assert_close(table.loss, problem.solve(table.mask)[1])


@pytest.mark.parametrize("few", [1, 4, 9])
def test_few_rows_of_many_are_toggled_alike(few):
    problem = random_problem(groups=4, height=2, batch=9)
    generator = torch.Generator().manual_seed(few)
    table, rows = PivotTable(problem), torch.randperm(9, generator=generator)[:few]
    for groups in torch.randint(4, (2, few), generator=generator):
        table.toggle(groups, rows)
        mask = table.mask.clone()
        torch.testing.assert_close(table.loss, problem.solve(mask)[1])
    changed = (~table.mask).any(1).nonzero().flatten().tolist()
    assert set(changed) <= set(rows.tolist())
    fresh = PivotTable(problem)
    fresh.move_to(table.mask)
    torch.testing.assert_close(table.scores(), fresh.scores())


def test_all_kept_or_all_pruned_leaves_nothing_to_exchange():
    table = PivotTable(random_problem(groups=4, height=2, batch=2))
    for mask in (torch.ones(2, 4).bool(), torch.zeros(2, 4).bool()):
        table.move_to(mask)
        assert table.best_swap(shortlist=4)[0].tolist() == [torch.inf] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_hold_after_a_descent(dtype):
    exact = dtype == torch.float64
    for seed in range(30):  # rows run dry in every order
        problem = random_problem(groups=14, height=2, batch=2, outputs=1, seed=seed)
        table = PivotTable(problem, dtype)
        table.move_to(torch.arange(14).expand(2, -1) < 7)
        before = problem.solve(table.mask)[1]
        table.descend(shortlist=2)
        loss = problem.solve(table.mask)[1]
        assert (loss <= before * (1 + 1e-4)).all()
        torch.testing.assert_close(table.loss, loss, rtol=1e-8 if exact else 1e-2, atol=1e-9)
        assert torch.equal(table.mask.sum(1), torch.tensor([7, 7]))


def test_what_float32_cannot_factor_is_searched_in_float64(refuse_float32):
    problem = random_problem(groups=8, height=3, batch=4)
    expected = lgd_rpp_refit(problem, 4, exact=False)
    tried = refuse_float32()
    mask = lgd_rpp_refit(problem, 4, exact=False)
    assert tried == [torch.float32, torch.float64]
    losses = (problem.solve(each)[1] for each in (mask, expected))
    torch.testing.assert_close(*losses)


def test_descend_ends_where_no_exchange_helps():
    problem = random_problem(groups=8, height=3, batch=5, seed=2)
    table = PivotTable(problem)
    start = torch.zeros(5, 8, dtype=torch.bool)
    for row, number in enumerate([1, 3, 4, 7, 8]):
        start[row, :number] = True
    table.move_to(start)
    before = table.loss.clone()
    table.descend(shortlist=2)
    assert torch.equal(table.mask.sum(1), start.sum(1))
    assert (table.loss <= before + 1e-12).all()
    assert (table.best_swap(shortlist=8)[0] >= -1e-9).all()


def test_elimination_by_hand():
    # Independent inputs of energy 1, outputs read them with weights 3, 1, 2: the least goes first.
    problem = RefitProblem.from_moments(
        torch.eye(3),
        torch.tensor([[3.0], [1.0], [2.0]]),
        torch.tensor([1, 1, 1]),
        torch.tensor([[0]]),
    )
    assert obs_group(problem, 2).tolist() == [[True, False, True]]
    assert obs_group(problem, 1).tolist() == [[True, False, False]]


def test_copies_of_an_input_are_pruned_for_nothing():
    # Inputs 0 and 1 are the same signal with large weights; 2 is weak but has no substitute.
    signal = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = signal[:, [0, 0, 1]]
    moment = inputs.T @ inputs / 100
    weight = torch.tensor([[5.0], [5.0], [1.0]])
    problem = RefitProblem.from_moments(
        moment, weight, torch.tensor([1, 1, 1]), torch.tensor([[0]]), damping=1e-6
    )
    for mask in (lgd_rpp_refit(problem, 2), obs_group(problem, 2)):
        assert mask[0, 2]
        assert problem.solve(mask)[1].item() < 1e-3


@pytest.mark.parametrize("rest", [1e-12, 1e-8, 1e-5])
def test_tables_in_float32_are_refused_where_rows_tell_each_other(rest):
    """Two inputs that differ by little: rounding would look like worth."""
    moment = torch.eye(6, dtype=torch.float64)
    moment[0, 3] = moment[3, 0] = 1 - rest
    target = torch.ones(1, 6, 1, dtype=torch.float64)
    problem = RefitProblem(moment, target, torch.full((1,), 50.0).double(), 3)
    PivotTable(problem)
    with pytest.raises(SolverError, match="float32"):
        PivotTable(problem, torch.float32)
    moment[0, 3] = moment[3, 0] = 0.9
    PivotTable(RefitProblem(moment, target, problem.constant, 3), torch.float32)


def test_scores_are_made_anew_for_what_was_toggled(monkeypatch):
    table = PivotTable(random_problem(batch=3, groups=4, height=2))
    table.scores()
    table.toggle(torch.tensor([2]), torch.tensor([1]))
    asked = []
    monkeypatch.setattr(pivot, "cholesky", lambda m: asked.append(len(m)) or cholesky(m))
    found = table.scores()
    assert asked == [1]
    fresh = PivotTable(random_problem(batch=3, groups=4, height=2))
    fresh.toggle(torch.tensor([2]), torch.tensor([1]))
    torch.testing.assert_close(found, fresh.scores())
    assert torch.equal(table.scores(torch.tensor([2, 1])), found[[2, 1]])
