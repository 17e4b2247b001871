"""A ratio for each layer: by hand, by pattern, and what cannot be met."""

import pytest
from torch import nn

from crosspruner.errors import BudgetError, ConfigError
from crosspruner.hardware import plan_model
from crosspruner.pruning.budget import prunable_layers
from crosspruner.pruning.layer_ratios import per_layer_budget, ratio_of


@pytest.fixture(scope="module")
def four():
    """Layers 0 to 3 of 16 crossbars each on 2x2; 1 and 2 may be pruned, down to 4 blocks."""
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    plan = plan_model(network, (8,), "2x2", grain="crossbar")
    return plan, prunable_layers(plan, "crossbar")


def test_each_layer_gives_its_own_ratio_to_the_nearest_block(four):
    budget = per_layer_budget(*four, {"1": 0.5, "2": 0.7})  # 8 and 11.2 of 16
    assert budget == {"1": 8, "2": 5}
    assert ratio_of(*four, budget) == (8 + 11) / 64


def test_layers_that_are_not_named_stay_whole(four):
    assert per_layer_budget(*four, {"2": 0.25}) == {"1": 16, "2": 12}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"*": 0.5}, {"1": 8, "2": 8}),  # patterns pass over what may not be pruned
        ({"*": 0.5, "2": 0.0}, {"1": 8, "2": 16}),
        ({"2": 0.0, "*": 0.5}, {"1": 8, "2": 16}),  # a name before any pattern
        ({"*": 0.5, "[12]": 0.25}, {"1": 12, "2": 12}),  # the later pattern
        ({"0": 0.0, "1": 0.5}, {"1": 8, "2": 16}),
    ],
)
def test_which_ratio_counts(four, given, kept):
    assert per_layer_budget(*four, given) == kept


def test_names_may_be_nested_as_the_command_line_makes_them():
    network = nn.Sequential()
    network.add_module("a", nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))))
    plan = plan_model(network, (8,), "2x2", grain="crossbar")
    layouts = prunable_layers(plan, "crossbar")
    assert per_layer_budget(plan, layouts, {"a": {"1": 0.5}}) == {"a.1": 8}
    assert per_layer_budget(plan, layouts, {"a": {1: 0.5}}) == {"a.1": 8}


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"9": 0.5}, ConfigError, "'9' matches no layer. The layers are: 0, 1, 2, 3"),
        ({"0": 0.5}, BudgetError, "0 cannot be pruned.*the prunable layers are 1, 2"),
        ({"1": 0.9}, BudgetError, r"asks for 14 of 16 blocks.*largest feasible ratio is 0\.7500"),
        ({"1": 1.0}, ConfigError, "1=1 is out of range"),
        ({"1": -0.1}, ConfigError, "out of range"),
        ({"1": "half"}, ConfigError, "1='half' is no fraction"),
        ({"1": True}, ConfigError, "is no fraction"),
        ({"1": float("nan")}, ConfigError, "is no fraction"),
    ],
)
def test_what_cannot_be_met_is_said(four, given, error, said):
    with pytest.raises(error, match=said):
        per_layer_budget(*four, given)
