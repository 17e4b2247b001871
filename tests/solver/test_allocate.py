"""Which problem of a layer gives a group away, and what each removal costs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.solver import LayerProblem, share_out
from crosspruner.solver.judge import RefitJudge, judge_of


def layer(groups: int = 5, batch: int = 3, seed: int = 0, refit: bool = True) -> LayerProblem:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(60, 2 * groups, generator=generator, dtype=torch.float64)
    weight = torch.randn(2 * groups, batch, generator=generator, dtype=torch.float64)
    whole = LayerProblem.from_moments(
        inputs.T @ inputs, weight, torch.full((groups,), 2), torch.arange(batch).view(-1, 1)
    )
    return whole if refit else LayerProblem(whole.gram, whole.linear, whole.energy)


def test_removals_are_shared_out_where_they_cost_least():
    costs = torch.tensor([[1.0, 9.0, 2.0], [3.0, 4.0, 5.0]])
    # The third removal of the first row is open only after the one of cost 9.
    assert share_out(costs, 7).tolist() == [3, 4]
    assert share_out(costs, 4).tolist() == [3, 1]
    assert share_out(costs, 2).tolist() == [1, 1]


@given(
    costs=st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_shares_are_optimal_where_each_removal_costs_more_than_the_last(costs, data):
    table = torch.tensor(costs, dtype=torch.float64).sort(1).values
    total = data.draw(st.integers(len(costs), 4 * len(costs)))
    keep = share_out(table, total)
    assert int(keep.sum()) == total
    assert int(keep.min()) >= 1
    assert int(keep.max()) <= 4
    spent = torch.cat([table.new_zeros(len(table), 1), table.cumsum(1)], 1)  # by removals
    options = itertools.product(range(4), repeat=len(costs))
    best = min(
        sum(row[k] for row, k in zip(spent, choice, strict=True))
        for choice in options
        if 4 * len(costs) - sum(choice) == total
    )
    assert spent.gather(1, 4 - keep[:, None]).sum().item() == pytest.approx(float(best))


@pytest.mark.parametrize("refit", [False, True])
def test_removal_costs_add_up_to_the_loss_of_the_last_mask(refit):
    problem = layer(refit=refit)
    judge = judge_of(problem)
    start = judge.loss(torch.ones(3, 5, dtype=torch.bool))
    costs = judge.removal_costs
    assert costs.shape == (3, 4)
    # Whichever group was left: the loss of keeping that one alone.
    singles = torch.stack([judge.loss(torch.eye(5).bool()[[g] * 3]) for g in range(5)], 1)
    total = start + costs.sum(1)
    assert (singles - total.unsqueeze(1)).abs().amin(1).max() < 1e-8 * total.abs().max()


@pytest.mark.parametrize("refit", [False, True])
def test_a_layer_of_one_input_group_has_nothing_to_remove(refit):
    one = layer(groups=1, refit=refit)
    assert judge_of(one).removal_costs.shape == (3, 0)


def test_refitted_removals_cost_less_than_fixed_ones():
    fixed, refitted = (judge_of(layer(seed=2, refit=r)).removal_costs for r in (False, True))
    assert (refitted.sum(0) < fixed.sum(0)).all()


@pytest.mark.parametrize("kept_in_memory", [2**26, 1])
def test_a_layer_judged_in_parts_is_judged_alike(monkeypatch, kept_in_memory):
    problem, mask = layer(seed=2, refit=True), torch.rand(3, 5).argsort(1) < 3
    whole = RefitJudge(problem)
    expected = whole.removal_costs, whole.worth(mask), whole.loss(mask), whole.loss(~mask)
    monkeypatch.setattr("crosspruner.solver.pivot.TABLE_ENTRIES", 1)
    monkeypatch.setattr("crosspruner.solver.judge.LASTING_ENTRIES", kept_in_memory)
    parts = RefitJudge(problem)
    assert len(parts._parts) == 3
    found = parts.removal_costs, parts.worth(mask), parts.loss(mask), parts.loss(~mask)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
