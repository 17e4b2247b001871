"""The uniform budget: by hand, then that it is as near to the target as the units allow."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crosspruner.errors import BudgetError, ConfigError
from crosspruner.hardware import MappingSpec, plan_model
from crosspruner.pruning.budget import (
    _common_share,
    _rounded,
    global_budget,
    prunable_layers,
    settle,
    uniform_budget,
)
from crosspruner.pruning.mask_choice import removal_curve
from crosspruner.solver import LayerProblem
from crosspruner.sparsity import GroupLayout
from crosspruner.training import build_model


def three_linear_layers():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))


def test_the_prunable_layer_gives_for_the_excluded_ones():
    plan = plan_model(three_linear_layers(), (8,), "2x2")  # 16 crossbars each
    layouts = prunable_layers(plan, "crossbar")
    assert list(layouts) == ["1"]
    assert uniform_budget(plan, layouts, 0.25) == {"1": 4}  # a quarter of 48 = 12 of its 16
    assert uniform_budget(plan, layouts, 0.0) == {"1": 16}


def test_layers_of_one_input_group_are_left_alone():
    plan = plan_model(three_linear_layers(), (8,), "8x2", exclude=())
    assert prunable_layers(plan, "column") == {}
    with pytest.raises(BudgetError, match="no layer of 0, 1, 2 can be pruned"):
        uniform_budget(plan, {}, 0.5)


def test_include_and_exclude_that_leave_nothing_are_named():
    for how in ({"include": ["1"], "exclude": ["1"]}, {"include": ["0"]}, {"exclude": ["*"]}):
        plan = plan_model(three_linear_layers(), (8,), "2x2", **how)
        with pytest.raises(BudgetError, match="include without exclude leaves no layer"):
            uniform_budget(plan, prunable_layers(plan, "column"), 0.2)


def test_a_ratio_out_of_reach_names_the_largest_and_the_layers():
    plan = plan_model(three_linear_layers(), (8,), "2x2")
    with pytest.raises(BudgetError, match=r"layers \(1\) can give 12.*ratio is 0\.2500"):
        uniform_budget(plan, prunable_layers(plan, "crossbar"), 0.5)


def test_a_ratio_out_of_reach_says_where_the_crossbars_are_and_what_frees_them():
    pairs = [(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)) for _ in range(6)]
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *(layer for pair in pairs for layer in pair))
    plan = plan_model(net, (3, 4, 4), "4x8", MappingSpec("folded", kin=1), exclude=["0"])
    with pytest.raises(BudgetError) as caught:
        uniform_budget(plan, prunable_layers(plan, "column"), 0.9)
    message = str(caught.value)
    assert "(2, 4, 6, 8 and 2 more) can give" in message
    # Nine rows of one channel on three crossbars of four rows; three inputs of the first layer.
    assert f"one input group (6, 6 of them depthwise) hold {6 * 8 * 3} crossbars" in message
    assert "may not be pruned (1) hold 3 crossbars" in message
    assert "try mapping.grouped=block_diagonal" in message
    together = MappingSpec("folded", grouped="block_diagonal")
    plan = plan_model(net, (3, 4, 4), "36x8", together, exclude=["0"])
    with pytest.raises(BudgetError, match="try smaller crossbars") as caught:
        uniform_budget(plan, prunable_layers(plan, "crossbar"), 0.9)
    assert "block_diagonal" not in str(caught.value)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_ratio_that_is_no_fraction_is_refused(ratio):
    plan = plan_model(three_linear_layers(), (8,), "2x2")
    with pytest.raises(BudgetError, match="from 0 to below 1"):
        uniform_budget(plan, prunable_layers(plan, "crossbar"), ratio)


@pytest.mark.parametrize("ratio", ["0.5", "x", None, [0.5], True])
def test_a_ratio_that_is_no_number_is_refused(ratio):
    plan = plan_model(three_linear_layers(), (8,), "2x2")
    with pytest.raises(ConfigError, match="is no number: give a fraction"):
        uniform_budget(plan, prunable_layers(plan, "crossbar"), ratio)


@given(st.data())
def test_the_sum_is_within_half_of_the_smallest_unit_where_it_has_blocks_to_spare(data):
    layers = data.draw(st.integers(1, 6))
    unit = torch.tensor(data.draw(st.lists(st.integers(1, 12), min_size=layers, max_size=layers)))
    blocks = torch.tensor(
        data.draw(st.lists(st.integers(30, 80), min_size=layers, max_size=layers))
    )
    most = blocks - 2
    # Away from the ends, so that the finest layer has room for what the others leave over.
    target = data.draw(st.floats(0.2, 0.8)) * float((blocks * unit).sum())
    wanted = _common_share(unit, blocks, most, target)
    removed, rounded = settle(wanted, unit, most, target), _rounded(wanted, unit, most, target)
    assert ((removed >= 0) & (removed <= most)).all()
    missed = abs(float((removed * unit).sum()) - target)
    assert missed <= 0.5 * int(unit.min()) + 1e-6
    if not torch.equal(removed, rounded):  # units such as 3, 6 and 7 may need uneven shares
        assert missed < abs(float((rounded * unit).sum()) - target)
        return
    coarse = unit > unit.min()
    if coarse.any():  # every layer gives the same share, to within a block
        assert float((removed - wanted)[coarse].abs().max()) <= 1


@pytest.mark.parametrize(
    ("wanted", "unit", "most", "target", "expected"),
    [
        # One crossbar is missing, and no block is so small: a coarse one for two fine ones.
        ([3.0, 4.0], [3, 2], [6, 8], 18.0, [4, 3]),
        # The finest layer has no more to give: the leftover 24 are two blocks of the middle one.
        ([1.0, 2.0, 4.0], [48, 12, 2], [4, 6, 4], 104.0, [1, 4, 4]),
        # Whole numbers, as the solvers over all layers hand them in: 208 crossbars of 240.
        ([2.0, 5.0], [24, 32], [6, 8], 239.9, [2, 6]),
        # Nothing comes nearer than one crossbar: the rounded numbers stay.
        ([2.0, 1.5], [2, 2], [2, 4], 7.0, [2, 1]),
    ],
)
def test_what_rounding_misses_is_met_by_the_division_next_to_what_is_wanted(
    wanted, unit, most, target, expected
):
    given = torch.tensor(wanted), torch.tensor(unit), torch.tensor(most)
    assert settle(*given, target).tolist() == expected


@given(st.data())
def test_no_whole_blocks_come_nearer_to_the_target(data):
    layers = data.draw(st.integers(1, 4))
    unit = data.draw(st.lists(st.sampled_from([1, 2, 3, 6, 12, 24, 32]), min_size=layers,
                              max_size=layers))  # fmt: skip
    most = data.draw(st.lists(st.integers(0, 7), min_size=layers, max_size=layers))
    limit = sum(u * m for u, m in zip(unit, most, strict=True))
    target = data.draw(st.floats(0, limit))
    whole = data.draw(st.booleans())
    wanted = [data.draw(st.integers(0, m) if whole else st.floats(0, m)) for m in most]
    given = torch.tensor(wanted, dtype=torch.float64), torch.tensor(unit), torch.tensor(most)
    removed = settle(*given, target).tolist()
    assert all(0 <= r <= m for r, m in zip(removed, most, strict=True))
    sums = [
        sum(r * u for r, u in zip(some, unit, strict=True))
        for some in itertools.product(*[range(m + 1) for m in most])
    ]
    missed = abs(sum(r * u for r, u in zip(removed, unit, strict=True)) - target)
    assert missed == pytest.approx(min(abs(s - target) for s in sums), abs=1e-5)


@pytest.mark.parametrize("crossbar", ["64x64", "128x128"])
@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_real_networks_meet_every_ratio_to_a_fiftieth(name, crossbar):
    with torch.device("meta"):
        network = build_model(name, 10)
    plan = plan_model(network, (3, 32, 32), crossbar)
    for grain in ("crossbar", "column"):
        layouts = prunable_layers(plan, grain)
        for ratio in (0.1, 0.3, 0.5, 0.7):
            kept = uniform_budget(plan, layouts, ratio)
            removed = sum(
                (layout.blocks - kept[name]) * layout.crossbars_per_block
                for name, layout in layouts.items()
            )
            assert abs(removed / plan.compute_crossbars - ratio) < 0.02


def two_prunable_layers(last: int = 8) -> nn.Sequential:
    """Layers 1 and 2 may be pruned, of 16 and 2 * last blocks on 2x2 crossbars."""
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, last), nn.Linear(last, 2))


def test_the_global_budget_takes_the_cheapest_removals_by_hand():
    plan = plan_model(two_prunable_layers(4), (8,), "2x2")  # 16 + 16 + 8 + 2 crossbars
    layouts = prunable_layers(plan, "crossbar")
    # Twelve and six removals: the second layer's first three cost less than any of the first's.
    costs = {"1": torch.arange(4.0, 16.0), "2": torch.tensor([1.0, 2.0, 3.0, 6.5, 9.5, 20.0])}
    assert global_budget(plan, layouts, 4 / 42, costs) == {"1": 15, "2": 5}  # 1 2 3 | 4
    assert global_budget(plan, layouts, 6 / 42, costs) == {"1": 13, "2": 5}  # 1 2 3 | 4 5 6
    assert global_budget(plan, layouts, 7 / 42, costs) == {"1": 13, "2": 4}  # ... | 6.5
    assert global_budget(plan, layouts, 0.0, costs) == {"1": 16, "2": 8}


def alone(worth: torch.Tensor) -> LayerProblem:
    """Groups that have nothing to do with each other, (U, P) worth so much each."""
    return LayerProblem(torch.diag_embed(worth), worth)


@pytest.mark.parametrize(
    ("outputs", "lanes", "costs"),
    [
        # Blocks of 4 + 1 columns in each of 4 input groups: the four single columns go first.
        (5, {}, [1, 1, 1, 1, 4, 4]),
        (8, {}, [4, 4, 4, 4, 4, 4]),
        (3, {}, [3, 3, 3]),
        # Two sections of 4 + 1.
        (10, {"sections": 2}, [1, 1, 1, 1, 1, 1, 1, 1, 4, 4, 4, 4]),
    ],
)
def test_a_last_block_of_few_columns_costs_only_those(outputs, lanes, costs):
    layout = GroupLayout("fc", "column", outputs, 4, 1, 1, 4, **lanes)
    worth = torch.ones(outputs, 4, dtype=torch.float64)
    assert removal_curve(alone(worth), layout).tolist() == costs


def test_a_curve_does_not_fall_where_removals_gain():
    layout = GroupLayout("fc", "column", 5, 4, 1, 1, 4)
    own = torch.ones(5, 4, dtype=torch.float64)
    curve = removal_curve(LayerProblem(torch.diag_embed(own), 0.25 * own), layout)  # -0.5 a column
    assert curve.tolist() == [-0.5] * 6


@given(st.integers(1, 6), st.integers(2, 4), st.integers(1, 4))
def test_removal_curves_count_the_columns_that_no_crossbar_can_hold(outputs, inputs, kout):
    layout = GroupLayout("fc", "column", outputs, inputs, 1, 1, min(kout, outputs))
    most = [0] * (layout.blocks + 1)  # columns that so many blocks hold
    for kept in itertools.product(range(outputs + 1), repeat=inputs):
        blocks = sum(-(-n // layout.kout) for n in kept)
        most[blocks] = max(most[blocks], sum(kept))
    worth = torch.ones(outputs, inputs, dtype=torch.float64)
    spent = removal_curve(alone(worth), layout).cumsum(0).tolist()
    assert spent == [
        outputs * inputs - most[blocks]
        for blocks in range(layout.blocks - 1, layout.fewest_blocks - 1, -1)
    ]


def test_the_global_budget_goes_by_the_price_of_a_crossbar():
    # Two crossbars a block in the convolution (kernel of 9 on 8 rows), one in the linear layer.
    net = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 2)
    )
    plan = plan_model(net, (2, 3, 3), "8x2", "folded", exclude=["0", "4"])
    layouts = prunable_layers(plan, "crossbar")
    assert {name: layout.crossbars_per_block for name, layout in layouts.items()} == {"1": 2}
    plan = plan_model(net, (2, 3, 3), "2x2", "folded", exclude=["0", "4"])
    layouts = prunable_layers(plan, "crossbar")
    unit = {name: layout.crossbars_per_block for name, layout in layouts.items()}
    assert unit == {"1": 5, "3": 1}
    most = {name: layout.blocks - layout.fewest_blocks for name, layout in layouts.items()}
    # Dearer by the block, cheaper by the crossbar: the convolution goes first.
    costs = {"1": torch.full((most["1"],), 4.0), "3": torch.full((most["3"],), 1.0)}
    kept = global_budget(plan, layouts, 15 / plan.compute_crossbars, costs)
    assert kept == {"1": layouts["1"].blocks - 3, "3": layouts["3"].blocks}


def test_the_global_budget_gives_a_coarse_block_where_the_fine_ones_run_out():
    net = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 2)
    )
    plan = plan_model(net, (2, 3, 3), "2x2", "folded", exclude=["0", "4"])
    layouts = prunable_layers(plan, "crossbar")  # 5 and 1 crossbars a block
    dense = {name: layout.blocks for name, layout in layouts.items()}
    most = {name: layout.blocks - layout.fewest_blocks for name, layout in layouts.items()}
    costs = {"1": torch.full((most["1"],), 50.0), "3": torch.arange(most["3"]).float()}
    assert most["3"] == 4

    def removed(crossbars):
        kept = global_budget(plan, layouts, crossbars / plan.compute_crossbars, costs)
        return {name: dense[name] - kept[name] for name in kept}

    assert removed(4) == {"1": 0, "3": 4}
    # All of the cheap layer and one crossbar more: the dear block, and the cheap ones come back.
    assert removed(5) == {"1": 1, "3": 0}
    assert removed(6) == {"1": 1, "3": 1}
    assert removed(14) == {"1": 2, "3": 4}


@given(st.data())
def test_no_exchange_of_equal_crossbars_lowers_the_cost_of_a_global_budget(data):
    plan = plan_model(two_prunable_layers(), (8,), "2x2")
    layouts = prunable_layers(plan, "crossbar")
    costs = {
        name: torch.tensor(
            data.draw(
                st.lists(st.floats(0, 9), min_size=layout.blocks - 4, max_size=layout.blocks - 4)
            )
        )
        .sort()
        .values
        for name, layout in layouts.items()
    }
    gone = data.draw(st.integers(0, 24))
    kept = global_budget(plan, layouts, gone / plan.compute_crossbars, costs)
    removed = {name: layout.blocks - kept[name] for name, layout in layouts.items()}
    assert sum(removed.values()) == gone
    spent = {name: torch.cat([torch.zeros(1), costs[name].cumsum(0)]) for name in costs}
    total = sum(float(spent[name][n]) for name, n in removed.items())
    best = min(
        float(spent["1"][n] + spent["2"][gone - n])
        for n in range(max(0, gone - 12), min(12, gone) + 1)
    )
    assert total == pytest.approx(best, abs=1e-4)
