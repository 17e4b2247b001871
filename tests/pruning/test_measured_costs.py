"""What a global budget looks at: layers pruned alone, and whole networks between two budgets."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import crosspruner as cp
from crosspruner.hardware import MappingSpec, plan_model
from crosspruner.pruning.batch_norm import reestimate_all
from crosspruner.pruning.budget import global_budget, prunable_layers, uniform_budget
from crosspruner.pruning.budget_search import STEPS, between, search_between
from crosspruner.pruning.held_out import HELD_OUT, HeldOut
from crosspruner.pruning.layerwise import prune_layers, users_of
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.measured_costs import measured_costs, through
from crosspruner.pruning.output_weights import output_weights

from .test_prune import make_images, make_net

CHIP = {"crossbar": "36x16", "mapping": MappingSpec("folded", kin=2, kout=4)}


def test_a_curve_passes_through_what_was_measured():
    curve = torch.ones(4, dtype=torch.float64)
    found = through(curve, [2, 4], [2.0, 8.0])
    # Factors 1 and 2 at the levels, their geometric mean halfway.
    totals = [1, 2, 3 * math.sqrt(2), 8]
    assert found.cumsum(0).tolist() == pytest.approx(totals)


def test_noise_that_makes_costs_fall_or_negative_is_levelled():
    found = through(torch.ones(4, dtype=torch.float64), [1, 2, 3, 4], [-0.1, 3.0, 1.0, 9.0])
    # Totals about 0, 3, 3, 9: the rise of 3 and the flat piece after it become 1.5 each.
    assert found.tolist() == pytest.approx([0, 1.5, 1.5, 6], abs=1e-6)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    st.lists(st.floats(-1, 1e3), min_size=4, max_size=4),
)
def test_bent_curves_never_fall_and_keep_the_last_cost(curve, costs):
    levels = sorted({round(share * len(curve)) for share in (0.25, 0.5, 0.75, 1)} - {0})
    costs = costs[: len(levels)]
    found = through(torch.tensor(sorted(curve), dtype=torch.float64), levels, costs)
    assert found.shape == (len(curve),)
    assert bool((found.diff() >= -1e-9 * found.abs().max()).all())
    assert float(found.sum()) == pytest.approx(max(1e-9, *costs, 0.0), rel=1e-6)


@pytest.mark.parametrize("images", [2, 5, 12])
def test_each_image_fits_or_judges_and_swapping_turns_it_round(images):
    batches = torch.arange(images).float()[:, None].split(2)
    first, second = HeldOut(batches), HeldOut(batches, swapped=True)
    parts = [torch.cat(half.fitting).flatten().tolist() for half in (first, second)]
    assert sorted(parts[0] + parts[1]) == list(range(images))
    assert len(parts[1]) == round(HELD_OUT * images)
    net = torch.nn.Linear(1, 2, bias=False)
    for half, judging in ((first, parts[1]), (second, parts[0])):
        net.weight.data = torch.zeros(2, 1)
        half.expect(net)
        net.weight.data = torch.tensor([[1.0], [-1.0]])  # off by the image, and by minus the image
        assert half.error(net) == pytest.approx(2 * sum(x**2 for x in judging) / len(judging))


def test_the_divergence_of_predictions_by_hand():
    net = torch.nn.Linear(1, 2, bias=False)
    net.weight.data = torch.tensor([[0.0], [0.0]])
    held = HeldOut([torch.tensor([[1.0], [0.0], [7.0], [7.0]])])  # the first two judge
    held.expect(net)
    assert held.divergence(net) == 0
    net.weight.data = torch.tensor([[math.log(3)], [0.0]])  # 3/4 and 1/4, of the first image alone
    assert held.divergence(net) == pytest.approx(math.log(4 / 3) / 4)


def test_the_error_of_logits_by_hand():
    net = torch.nn.Linear(1, 3, bias=False)
    net.weight.data = torch.tensor([[1.0], [2.0], [3.0]])
    held = HeldOut([torch.tensor([[1.0], [2.0], [7.0], [7.0]])])  # the first two judge
    held.expect(net)
    assert held.error(net) == 0
    net.weight.data += 5  # a shift of all logits changes no prediction
    assert held.error(net) == pytest.approx(0, abs=1e-9)
    net.weight.data[2] += 3  # off by (-1, -1, 2) times the image
    assert held.error(net) == pytest.approx(6 * (1 + 4) / 2)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_the_cost_is_that_of_pruning_the_layer_alone(grain, monkeypatch):
    """Against `prune` on the same images, each layer by itself as far as it goes."""
    monkeypatch.setattr("crosspruner.pruning.measured_costs.LEVELS", (1.0,))
    net, images = make_net().eval(), torch.cat(make_images()).double()
    judged = round(HELD_OUT * len(images))
    plan = plan_model(net, tuple(images.shape[1:]), grain=grain, **CHIP)
    layouts = prunable_layers(plan, grain)
    curves = {n: torch.ones(v.blocks - v.fewest_blocks).double() for n, v in layouts.items()}
    fitting = images[judged:].split(8)
    reestimate_all(net, fitting)
    seed = torch.Generator().manual_seed(0)
    weights = output_weights(net, users_of(plan, layouts), fitting, seed)
    settings = LayerwiseSettings(solver="taylor")
    found = measured_costs(
        *(net, plan, layouts, images.split(8), curves, weights, settings),
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        truth = net(images[:judged]).log_softmax(1)
    for name, layout in layouts.items():
        ratio = len(curves[name]) * layout.crossbars_per_block / plan.compute_crossbars
        alone = cp.prune(
            *(net, fitting),
            grain=grain,
            ratio=ratio + 1e-9,
            solver="taylor",
            include=name,
            exclude=(),
            **CHIP,
        )
        with torch.no_grad():
            pruned = alone.model(images[:judged]).log_softmax(1)
        divergence = float((truth.exp() * (truth - pruned)).sum(1).mean())
        assert divergence > 1e-4
        assert float(found[name].sum()) == pytest.approx(divergence, rel=1e-3)


def test_the_points_between_two_budgets_are_whole_and_spend_as_much():
    net = make_net().eval()
    plan = plan_model(net, (3, 6, 6), grain="crossbar", **CHIP)
    layouts = prunable_layers(plan, "crossbar")
    start = uniform_budget(plan, layouts, 0.5)
    costs = {n: torch.ones(v.blocks - v.fewest_blocks) for n, v in layouts.items()}
    costs["2"] *= 1e-3
    end = global_budget(plan, layouts, 0.5, costs)
    assert end["2"] == layouts["2"].fewest_blocks < start["2"]
    spent = []
    for step in (0.0, 0.25, 0.5, 1.0):
        blocks = between(plan, layouts, 0.5, start, end, step)
        spent.append(sum(blocks[n] * v.crossbars_per_block for n, v in layouts.items()))
        wanted = (1 - step) * start["2"] + step * end["2"]
        assert abs(blocks["2"] - wanted) <= 1
    assert len(set(spent)) == 1
    assert between(plan, layouts, 0.5, start, end, 0.0) == start
    assert between(plan, layouts, 0.5, start, end, 1.0) == end


def test_the_step_goes_as_far_as_it_helps(monkeypatch):
    # whole networks are judged by their logits, not by their predictions
    monkeypatch.delattr(HeldOut, "divergence")
    net, images = make_net().eval(), torch.cat(make_images()).double().split(12)
    plan = plan_model(net, (3, 6, 6), grain="crossbar", **CHIP)
    layouts = prunable_layers(plan, "crossbar")
    costs = {n: torch.ones(v.blocks - v.fewest_blocks) for n, v in layouts.items()}
    ends = [uniform_budget(plan, layouts, 0.5)]
    for cheap in ("2", "9"):
        some = costs | {cheap: costs[cheap] * 1e-3}
        ends.append(global_budget(plan, layouts, 0.5, some))
    settings = LayerwiseSettings(solver="taylor")
    halves = [HeldOut(images), HeldOut(images, swapped=True)]
    for half in halves:
        half.expect(net)

    def damage(blocks):
        total = 0.0
        for half in halves:
            trial, seed = copy.deepcopy(net), torch.Generator().manual_seed(0)
            prune_layers(trial, net, plan, layouts, blocks, half.fitting, {}, settings, seed)
            total += half.error(trial)
        return total

    steps = set()
    for start, end in itertools.permutations(ends, 2):
        found = search_between(
            *(net, plan, layouts, 0.5, images, start, end, {}, LayerwiseSettings()),
            torch.Generator().manual_seed(0),
        )
        tried = [damage(between(plan, layouts, 0.5, start, end, step)) for step in STEPS]
        assert min(tried) < max(tried)
        assert damage(found) == pytest.approx(min(tried), rel=1e-6)
        steps.add(tried.index(min(tried)))
    assert len(steps) > 1  # neither always the start nor always the end
