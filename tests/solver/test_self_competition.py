"""The agent: attention by hand, rewards by hand, and a search that must find what is known."""

import itertools

import pytest
import torch

from crosspruner.errors import SolverError
from crosspruner.solver.graph_attention import GraphAttention, GraphPolicy
from crosspruner.solver.self_competition import SearchSettings, rewards_against_oneself, search


def test_attention_by_hand():
    layer = GraphAttention(2, heads=1)
    with torch.no_grad():
        layer.values.weight.copy_(torch.eye(2))
        layer.source.copy_(torch.tensor([[1.0, 0.0]]))
        layer.target.zero_()
    layer.norm = torch.nn.Identity()
    nodes = torch.tensor([[0.0, 1.0], [1.0, 3.0], [5.0, 5.0]])
    sees = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])
    # node 0 weighs itself by e^0 and node 1 by e^1, and does not see node 2
    share = torch.e / (1 + torch.e)
    expected = torch.tensor([[share, 1 + (1 - share) * 1 + share * 3], [2.0, 6.0], [10.0, 10.0]])
    torch.testing.assert_close(layer(nodes, sees), expected)


def test_nodes_in_another_order_get_the_same_logits():
    torch.manual_seed(0)
    policy = GraphPolicy(3)
    torch.nn.init.normal_(policy.head.weight)
    features, sees = torch.randn(7, 3), torch.rand(7, 7) < 0.5
    sees |= torch.eye(7, dtype=torch.bool)
    order = torch.randperm(7)
    there = policy(features[order], sees[order][:, order])
    torch.testing.assert_close(there, policy(features, sees)[order])


def test_rewards_by_hand():
    rewards, reference = rewards_against_oneself([2.0, 1.0, 1.5], 0.0, 0.5)
    assert rewards == [1.0, -1.0, 1.0]  # the reference goes 0, 1, 1, 1.25
    assert reference == 1.25


def test_the_search_finds_the_best_of_all_choices():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 4, generator=generator)
    worth = torch.randn(6, generator=generator)

    def value(action):
        pair = 0.5 * float(action[0] & action[3])
        return float((worth * action).sum()) + pair

    everything = torch.ones(6, 6, dtype=torch.bool)
    found = search(features, everything, value, generator, SearchSettings(episodes=240))
    best = max(value(torch.tensor(a)) for a in itertools.product([False, True], repeat=6))
    assert found.value == pytest.approx(best)
    assert value(found.action) == pytest.approx(best)
    assert len(found.values) >= 240
    # the agent itself has learned, not only met the best by chance
    later, early = found.values[-40:], found.values[1:41]
    assert sum(later) / 40 > sum(early) / 40 + 0.3
    assert bool(((found.keep > 0.5) == (worth > 0))[worth.abs() > 0.5].all())


def test_the_same_generator_gives_the_same_search():
    features, everything = torch.randn(4, 3), torch.ones(4, 4, dtype=torch.bool)
    how = SearchSettings(episodes=20)
    runs = [
        search(
            features, everything, lambda a: float(a[0]) - float(a[1]),
            torch.Generator().manual_seed(1), how,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert runs[0].values == runs[1].values


def test_a_value_that_is_no_number_is_refused():
    with pytest.raises(SolverError, match="NaN"):
        search(
            torch.randn(2, 2), torch.ones(2, 2, dtype=torch.bool), lambda a: float("nan"),
            torch.Generator(), SearchSettings(episodes=4),
        )  # fmt: skip


def test_the_first_value_must_be_a_number_too():
    def dropping_nothing_is_unknown(action):
        return float("nan") if action.all() else 0.0

    with pytest.raises(SolverError, match="NaN"):
        search(
            torch.randn(2, 2), torch.ones(2, 2, dtype=torch.bool), dropping_nothing_is_unknown,
            torch.Generator(), SearchSettings(episodes=1),
        )  # fmt: skip
