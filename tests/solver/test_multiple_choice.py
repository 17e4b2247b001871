"""One level a layer within a budget: against all combinations."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import SolverError
from crosspruner.solver.multiple_choice import choose_levels


def test_by_hand():
    prices = [torch.tensor([4, 2, 0]), torch.tensor([3, 1])]
    losses = [torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.0, 0.5])]
    assert choose_levels(prices, losses, 7) == [0, 0]
    assert choose_levels(prices, losses, 5) == [0, 1]
    assert choose_levels(prices, losses, 4) == [1, 1]
    assert choose_levels(prices, losses, 1) == [2, 1]
    with pytest.raises(SolverError, match="cost 1"):
        choose_levels(prices, losses, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_no_combination_is_better(seed):
    generator = torch.Generator().manual_seed(seed)
    prices = [torch.randint(0, 6, (3,), generator=generator) for _ in range(4)]
    losses = [torch.rand(3, generator=generator) for _ in range(4)]
    budget = sum(int(p.min()) for p in prices) + seed % 7
    found = choose_levels(prices, losses, budget)

    def total(values, levels):
        return sum(float(v[i]) for v, i in zip(values, levels, strict=True))

    assert total(prices, found) <= budget
    best = min(
        total(losses, levels)
        for levels in itertools.product(range(3), repeat=4)
        if total(prices, levels) <= budget
    )
    assert total(losses, found) == pytest.approx(best)
