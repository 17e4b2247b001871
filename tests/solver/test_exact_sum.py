"""Counts whose sizes add up nearest to a target, at least cost: by hand, against all of them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspruner.solver.exact_sum import choose_counts


def chosen(costs, sizes, target):
    costs = [torch.tensor(c, dtype=torch.float64) for c in costs]
    return choose_counts(costs, torch.tensor(sizes), target).tolist()


def test_by_hand():
    # 2 a unit in the first kind; 1, then 3 a unit in the second.
    costs, sizes = [[6.0, 6.0, 6.0], [2.0, 6.0]], [3, 2]
    assert chosen(costs, sizes, 0) == [0, 0]
    assert chosen(costs, sizes, 2) == [0, 1]
    assert chosen(costs, sizes, 3) == [1, 0]  # gives the cheapest item back
    assert chosen(costs, sizes, 4) == [0, 2]
    assert chosen(costs, sizes, 5.2) == [1, 1]
    assert chosen(costs, sizes, 6) == [2, 0]
    assert chosen(costs, sizes, 12) == [3, 1]  # 11 or 13, and 11 costs less: there is no 12
    assert chosen(costs, sizes, 100) == [3, 2]


def test_kinds_may_be_empty_and_sizes_share_a_divisor():
    assert chosen([[], [1.0, 1.0]], [1, 20], 31) == [0, 2]
    assert chosen([[], []], [3, 2], 5) == [0, 0]


@given(st.data())
def test_no_other_counts_are_nearer_or_as_near_and_cheaper(data):
    kinds = data.draw(st.integers(1, 4))
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 6, 7, 12, 24, 32]), min_size=kinds,
                               max_size=kinds))  # fmt: skip
    costs = [
        # Whole numbers make ties; below zero a removal gains.
        sorted(data.draw(st.lists(st.integers(-2, 9), max_size=6)))
        for _ in range(kinds)
    ]
    most = sum(len(c) * s for c, s in zip(costs, sizes, strict=True))
    target = data.draw(st.floats(0, most) | st.integers(0, 2 * most).map(lambda n: n / 2))

    def rank(counts):
        reached = sum(n * s for n, s in zip(counts, sizes, strict=True))
        spent = sum(sum(c[:n]) for c, n in zip(costs, counts, strict=True))
        return abs(reached - target), spent

    found = chosen(costs, sizes, target)
    distance, spent = rank(found)
    ranks = [rank(n) for n in itertools.product(*[range(len(c) + 1) for c in costs])]
    assert distance == pytest.approx(min(ranks)[0], abs=1e-5)
    assert spent <= min(s for d, s in ranks if d == min(ranks)[0])


def test_a_million_items_of_many_sizes_meet_the_target():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([7, 12, 14, 24, 28, 48, 56, 112, 114, 1] * 4)
    costs = [torch.rand(25_000, generator=generator).sort().values * s for s in sizes.tolist()]
    counts = choose_counts(costs, sizes, 0.4 * 25_000 * float(sizes.sum()) + 0.4)
    assert int((counts * sizes).sum()) == int(0.4 * 25_000 * float(sizes.sum()))
