"""Each of the three conditions of the layer-wise procedure stops a layer; so does the target."""

import pytest
import torch

import crosspruner as cp
from crosspruner.errors import ConfigError
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.sparsity import GroupLayout

from .test_prune import make_images, make_net

GIVEN = {"crossbar": "36x16", "mapping": "folded", "kin": 2, "kout": 4, "solver": "magnitude"}


def kept_weights(net):
    """Share of the prunable weights that are left."""
    weights = [net.get_submodule(name).weight for name in ("2", "6", "9")]
    return float(sum((w != 0).sum() for w in weights) / sum(w.numel() for w in weights))


def prune(evaluate=lambda net: 1.0, ratio=0.85, grain="crossbar", **limits):
    budget = BudgetSettings("sensitivity", **limits)
    return cp.prune(
        *(make_net(), make_images()), budget=budget, evaluate=evaluate, ratio=ratio, grain=grain,
        **GIVEN,
    )  # fmt: skip


def blocks_of(result):
    """Layer name -> blocks in all, blocks kept."""
    return {
        name: (layout.blocks, layout.blocks_of(mask))
        for name, mask in result.masks.items()
        for layout in [GroupLayout.of(result.dense_plan.layer(name), result.plan.grain)]
    }


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_the_ratio_of_a_layer_stops_it(grain):
    result = prune(max_layer_ratio=0.4, ratio=0.5, grain=grain, step=0.25)
    assert set(result.stopped_by.values()) == {"ratio"}
    for blocks, kept in blocks_of(result).values():
        assert kept == -(-blocks * 6 // 10)  # 0.6 of them, rounded up


def test_tc_stops_a_layer():
    result = prune(min_crossbars=7, max_layer_ratio=1.0)
    assert set(result.stopped_by.values()) == {"crossbars"}
    for blocks, kept in blocks_of(result).values():
        assert kept == min(7, blocks)


def test_every_output_keeps_an_input_whatever_is_allowed():
    result = prune(max_layer_ratio=1.0)
    assert set(result.stopped_by.values()) <= {"crossbars", "target"}
    assert all(bool(mask.any(1).all()) for mask in result.masks.values())


def test_the_accuracy_stops_a_layer_at_the_step_before():
    steps = {}

    def evaluate(net):
        # A network that loses accuracy with every weight: the first layer may lose a third of it.
        steps[kept_weights(net)] = True
        return kept_weights(net)

    result = prune(evaluate, max_drop=0.3, step=0.1)
    assert result.stopped_by["9"] == "accuracy"
    assert kept_weights(result.model) >= 0.7
    dense = [kept_weights(make_net())]
    # One more step would have been too much: it was tried.
    assert min(steps) < 0.7 < max(steps) == pytest.approx(dense[0])


def test_a_layer_that_may_lose_nothing_stays_as_it_is():
    net = make_net()
    scores = iter([1.0] + [0.0] * 99)
    budget = BudgetSettings("sensitivity", max_drop=0.0)
    result = cp.prune(
        net, make_images(), budget=budget, evaluate=lambda _: next(scores), ratio=0.5, **GIVEN
    )
    assert result.saved == 0
    assert set(result.stopped_by.values()) == {"accuracy"}
    for name in result.masks:
        ours = result.model.get_submodule(name).weight
        assert torch.equal(ours, net.get_submodule(name).weight)


def test_the_target_stops_the_whole():
    result = prune(max_layer_ratio=0.6, ratio=0.2)
    assert result.saved <= 0.2
    assert result.saved == pytest.approx(0.2, abs=1 / result.dense_plan.compute_crossbars)
    assert "target" in result.stopped_by.values()


def test_a_ratio_of_whole_crossbars_is_met_to_the_last():
    budget = BudgetSettings("sensitivity", max_layer_ratio=0.6)
    result = cp.prune(
        make_net(), make_images(), budget=budget, evaluate=lambda net: 1.0, ratio=28 / 390,
        **GIVEN | {"kout": 1},
    )  # fmt: skip
    assert result.dense_plan.compute_crossbars == 390
    assert result.plan.compute_crossbars == 362


def test_it_needs_to_know_the_accuracy():
    with pytest.raises(ConfigError, match="give evaluate"):
        cp.prune(make_net(), make_images(), budget="sensitivity", **GIVEN)
    with pytest.raises(ConfigError, match="max_drop=2"):
        BudgetSettings("sensitivity", max_drop=2)


@pytest.mark.parametrize("solver", ["magnitude", "lgd_rpp"])
@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_a_layer_that_changes_its_mind_about_the_order_is_still_computed(grain, solver):
    # The order of a level before is dropped where a later one takes input FMs as they come.
    net = make_net()
    result = cp.prune(
        net,
        make_images(),
        crossbar="36x16",
        mapping="folded",
        kin=2,
        kout=4,
        ratio=0.85,
        grain=grain,
        solver=solver,
        reorder="best",
        budget=BudgetSettings("sensitivity", max_layer_ratio=1.0, step=0.1),
        evaluate=lambda net: 1.0,
    )
    for name, mask in result.masks.items():
        layout = GroupLayout.of(result.plan.layer(name), grain)
        assert not result.model.get_submodule(name).weight[~layout.expand(mask)].any()
    images = torch.cat(make_images()).double()
    with torch.no_grad():
        expected = result.model.eval()(images)
    torch.testing.assert_close(cp.simulate(result.plan, result.model, images), expected)
