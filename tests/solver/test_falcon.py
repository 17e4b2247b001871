"""Items with prices: by hand, against brute force, and between the bounds of the dual."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import SolverError
from crosspruner.solver.falcon import best_multiplier, choose_by_price, dual_value


def test_by_hand():
    values, prices = torch.tensor([6.0, 5.0, 4.0, 1.0]), torch.tensor([3.0, 1.0, 2.0, 4.0])
    # worth per price 2, 5, 2, 0.25: with 4 crossbars the second comes first, then the first
    assert choose_by_price(values, prices, 4).tolist() == [True, True, False, False]
    assert choose_by_price(values, prices, 6).tolist() == [True, True, True, False]
    assert choose_by_price(values, prices, 10).all()
    assert not choose_by_price(values, prices, 0).any()
    # D(2) = 2 * 4 + (0 + 3 + 0) = 11 is the least: the relaxation takes item 1 and all of item 0
    assert dual_value(values, prices, 4, 2.0) == pytest.approx(11)
    assert best_multiplier(values.double(), prices.double(), 4) == pytest.approx(2, abs=1e-6)


def test_the_number_of_items_is_limited():
    values, prices = torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.ones(4)
    assert choose_by_price(values, prices, 4, count=2).tolist() == [True, True, False, False]
    assert dual_value(values, prices, 4, 0.0, count=2) == 9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans())
def test_between_the_dual_and_one_item_less(seed, n, limited):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, generator=generator, dtype=torch.float64)
    prices = torch.randint(1, 5, (n,), generator=generator).double()
    budget = int(torch.randint(1, int(prices.sum()) + 1, (1,), generator=generator))
    count = int(torch.randint(1, n + 1, (1,), generator=generator)) if limited else None
    chosen = choose_by_price(values, prices, budget, count)
    assert float(prices[chosen].sum()) <= budget
    assert count is None or int(chosen.sum()) <= count
    best = max(
        float(values[list(some)].sum())
        for k in range(n + 1)
        for some in itertools.combinations(range(n), k)
        if float(prices[list(some)].sum()) <= budget and (count is None or k <= count)
    )
    bound = dual_value(
        values, prices, budget, best_multiplier(values, prices, budget, count), count
    )
    assert float(values[chosen].sum()) <= best + 1e-12 <= bound + 1e-9
    if count is None:  # what is lost is less than what one more item would bring
        assert best - float(values[chosen].sum()) <= float(values.max()) + 1e-9


def test_equal_prices_are_solved_exactly():
    values = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7])
    assert choose_by_price(values, torch.full((5,), 3.0), 9).tolist() == [
        False, True, False, True, True,
    ]  # fmt: skip


def test_what_is_out_of_range_is_refused():
    with pytest.raises(SolverError, match="above 0"):
        choose_by_price(torch.ones(2), torch.tensor([1.0, 0.0]), 1)
