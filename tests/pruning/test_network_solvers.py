"""Solvers that choose over all layers at once: slopes by autograd, exact budgets, brute force."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import crosspruner as cp
from crosspruner.errors import ConfigError
from crosspruner.hardware import plan_model
from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.layer_modules import operation_of
from crosspruner.hardware.matrix import to_matrix
from crosspruner.pruning.budget import prunable_layers
from crosspruner.pruning.falcon import _descend
from crosspruner.pruning.global_choice import block_values, choose_blocks, choose_masks
from crosspruner.pruning.graph_rl import graph_rl_masks, joined, own_statistics
from crosspruner.pruning.group_slopes import group_slopes
from crosspruner.pruning.layerwise import users_of
from crosspruner.pruning.network_solver import NETWORK_SOLVERS
from crosspruner.pruning.performance_aware import performance_aware_masks
from crosspruner.pruning.trial_masks import dense_matrices, on_trial
from crosspruner.sparsity import GroupLayout


class Small(nn.Module):
    """Convolutions with groups, stride and batch norm, two linear layers, one of them shared."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.third = nn.Conv2d(12, 12, 3, padding="same", groups=2)
        self.fc1 = nn.Linear(12 * 9, 24)
        self.shared = nn.Linear(24, 24)
        self.last = nn.Linear(24, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.third(F.relu(self.second(x))))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.last(F.relu(self.shared(F.relu(self.shared(x)))))


def trained(seed=0):
    torch.manual_seed(seed)
    network = Small().eval()
    network.norm.running_mean.uniform_(-0.2, 0.2)
    return network


def images(n=24, seed=1):
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def planned(network, grain="column"):
    plan = plan_model(network, (2, 6, 6), "18x8", "folded", grain)
    return plan, prunable_layers(plan, grain)


@pytest.mark.parametrize("grain", ["column", "crossbar"])
def test_slopes_are_those_of_autograd_image_by_image(grain):
    network, x = trained(), images(6)
    plan, layouts = planned(network, grain)
    users = users_of(plan, layouts)
    weights = {n: network.get_submodule(n).weight for n in layouts}
    found = group_slopes(
        network, layouts, users, weights, [x[:4], x[4:]], torch.Generator().manual_seed(3)
    )
    draw = torch.Generator().manual_seed(3)
    labels = torch.cat(
        [
            torch.multinomial(network(part).softmax(1), 1, generator=draw).squeeze(1)
            for part in (x[:4], x[4:])
        ]
    )
    for n in range(len(x)):
        network.zero_grad()
        F.cross_entropy(network(x[n : n + 1]), labels[n : n + 1]).backward()
        for name, layout in layouts.items():
            weight = weights[name]
            expected = layout.sum_by_group(weight.detach() * weight.grad).flatten()
            torch.testing.assert_close(found[name][n], expected, rtol=1e-4, atol=1e-6)
    assert "shared" in layouts  # a module that runs twice


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor that is made under it holds."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [value.numel() for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
        self.numbers = max(self.numbers, *made, 0)
        return out


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(64, 64), (64,)), (nn.Conv2d(16, 16, 3), (16, 3, 3))]
)
def test_gradients_by_weight_of_many_images_are_never_there_at_once(monkeypatch, layer, shape):
    """A linear layer of 8,192 inputs and 1,024 outputs took 8 GiB for 256 images."""
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(layer.weight.shape[0], 4)).eval()
    layout = GroupLayout("0", "column", *layer.weight.shape[:2], 1, 8, 8)
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))

    def slopes(entries):
        monkeypatch.setattr("crosspruner.pruning.group_slopes._ENTRIES", entries)
        seed, watch = torch.Generator().manual_seed(0), Largest()
        with watch:
            found = group_slopes(
                network, {"0": layout}, {"0": ["0"]}, {"0": layer.weight}, [x], seed
            )
        return found["0"], watch.numbers

    whole, much = slopes(2**30)
    parts, little = slopes(2**14)
    torch.testing.assert_close(parts, whole)
    assert much == 64 * layer.weight.numel()
    assert little <= max(2**14, x.numel(), whole.numel())


class Attends(nn.Module):
    """Attention over tokens, whose projections no module computes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.last = nn.Linear(12, 4)

    def forward(self, x):
        x = self.first(x)
        return self.last((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


def of_kind(kind):
    """A small network with one unusual layer, that layer's name, and four images."""
    torch.manual_seed(0)
    if kind == "attention":
        return Attends().eval(), "attention.in_proj", images(4)[:, :, 0].mT.repeat(1, 1, 3)
    middle, shape = {
        "transposed": (nn.ConvTranspose2d(6, 4, 3, 2, 1), (2, 5, 5)),
        "transposed, square": (nn.ConvTranspose2d(6, 6, 3, 2, 1), (2, 5, 5)),
        "transposed, groups": (nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 5, 5)),
        "depth": (nn.Conv3d(6, 4, 3, padding=1), (2, 4, 5, 5)),
        "weight norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3)), (2, 5, 5)),
    }[kind]
    first, pool = nn.Conv2d(2, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1)
    if len(shape) == 4:
        first, pool = nn.Conv3d(2, 6, 3, padding=1), nn.AdaptiveAvgPool3d(1)
    last = nn.Linear(middle.out_channels, 4)
    network = nn.Sequential(first, nn.ReLU(), middle, nn.Tanh(), pool, nn.Flatten(), last)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    return network.eval(), "2", x


KINDS = ["transposed", "transposed, square", "transposed, groups", "depth", "attention"]


@pytest.mark.parametrize("kind", KINDS)
def test_slopes_are_those_of_the_matrix_whatever_the_layer(kind):
    network, name, x = of_kind(kind)
    plan = plan_model(network, x.shape[1:], "8x4", "folded", "column", exclude=())
    layouts = {name: prunable_layers(plan, "column")[name]}
    module = layer_module(network, name)
    weights = dense_matrices(network, layouts)
    draw = torch.Generator().manual_seed(3)
    found = group_slopes(network, layouts, {name: [name]}, weights, [x], draw)[name]
    labels = torch.multinomial(
        network(x).softmax(1), 1, generator=torch.Generator().manual_seed(3)
    ).squeeze(1)
    for n in range(len(x)):
        network.zero_grad()
        F.cross_entropy(network(x[n : n + 1]), labels[n : n + 1]).backward()
        product = module.weight.detach() * module.weight.grad
        matrix = to_matrix(operation_of(module), product, getattr(module, "groups", 1))
        expected = layouts[name].sum_by_group(matrix).flatten()
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "weight norm"])
def test_masks_on_trial_zero_the_layers_matrix_and_leave_no_trace(kind):
    network, name, x = of_kind(kind)
    plan = plan_model(network, x.shape[1:], "8x4", "folded", "column", exclude=())
    layout = prunable_layers(plan, "column")[name]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    mask = torch.rand(layout.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with on_trial(network, {name: layout}) as trial:
        dense = trial.matrices[name].clone()
        trial.put({name: mask})
        left = dense_matrices(network, [name])[name]
        torch.testing.assert_close(left, dense * layout.expand_like(mask, dense))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("solver", list(NETWORK_SOLVERS))
@pytest.mark.parametrize("kind", ["transposed", "depth", "attention"])
def test_every_solver_prunes_layers_that_are_no_plain_matrix(solver, kind):
    network, _, x = of_kind(kind)
    given = {"solver": solver, "budget": "global", "ratio": 0.2}
    result = cp.prune(network, [x], "8x4", "folded", **given)
    assert abs(result.saved - 0.2) * result.dense_plan.compute_crossbars <= 3


def test_a_layer_with_weight_norm_is_measured_as_the_plain_one():
    normed, _, x = of_kind("weight norm")
    plain, _, _ = of_kind("weight norm")
    nn.utils.parametrize.remove_parametrizations(plain[2], "weight")
    masks = []
    for network in (normed, plain):
        plan = plan_model(network, x.shape[1:], "8x4", "folded", "column", exclude=())
        layouts = prunable_layers(plan, "column")
        found = performance_aware_masks(network, plan, layouts, {}, 0.4, [x], torch.Generator())
        masks.append(found)
    assert all(torch.equal(masks[0][n], masks[1][n]) for n in masks[1])
    assert not bool(masks[0]["2"].all())


@pytest.mark.parametrize("solver", NETWORK_SOLVERS)
def test_a_target_just_beyond_the_last_unit_takes_all_that_may_go(solver):
    network, x = trained(), images(4)
    plan = plan_model(network, (2, 6, 6), "18x8", "semifolded", "crossbar")
    layouts = {n: lay for n, lay in prunable_layers(plan, "crossbar").items() if n == "second"}
    # Six blocks of 3 crossbars may go: 18 crossbars are asked for, and one more.
    ratio = 19 / plan.compute_crossbars
    users = users_of(plan, layouts)
    found = NETWORK_SOLVERS[solver](
        network, plan, layouts, users, ratio, [x], torch.Generator().manual_seed(0)
    )
    assert layouts["second"].blocks_of(found["second"]) == 2


def test_blocks_are_worth_the_sums_of_their_columns():
    layout = GroupLayout("fc", "column", 3, 2, 1, 1, 2)
    scores = torch.tensor([[1.0, 5.0], [2.0, 0.0], [4.0, 3.0]])
    # group 0: 4 + 2, 1; group 1: 5 + 3, 0
    assert block_values(scores, layout).tolist() == [8, 6, 1, 0]


@pytest.mark.parametrize(
    "lanes", [{"sections": 2}, {"conv_groups": 2}, {"conv_groups": 4, "bundle": 2}]
)
def test_blocks_hold_columns_of_one_lane_only(lanes):
    # Outputs 0 and 1 share crossbars, and so do 2 and 3: 1 + 8 would be worth more, but is no block
    layout = GroupLayout(
        *("qkv", "column", 4, 2), **({"conv_groups": 1, "kin": 1, "kout": 2} | lanes)
    )
    scores = torch.tensor([[1.0, 5.0], [2.0, 0.0], [8.0, 3.0], [4.0, 3.0]])
    assert block_values(scores, layout).tolist() == [12, 6, 5, 3]
    assert len(block_values(scores, layout)) == layout.blocks


@pytest.mark.parametrize("ratio", [0.2, 0.45])
def test_the_choice_over_all_layers_is_within_one_group_of_the_best_of_all(ratio):
    network = trained()
    plan, layouts = planned(network, "crossbar")
    generator = torch.Generator().manual_seed(5)
    scores = {n: torch.rand(la.shape, generator=generator) for n, la in layouts.items()}
    blocks = choose_blocks(scores, plan, layouts, ratio)
    kept = {n: block_values(scores[n].double(), la).cumsum(0) for n, la in layouts.items()}
    ranges = [range(la.fewest_blocks, la.blocks + 1) for la in layouts.values()]
    unit = [la.crossbars_per_block for la in layouts.values()]
    removed = sum((la.blocks - blocks[n]) * la.crossbars_per_block for n, la in layouts.items())
    best = max(
        sum(float(kept[n][b - 1]) for n, b in zip(layouts, some, strict=True))
        for some in itertools.product(*ranges)
        if sum((r[-1] - b) * u for r, b, u in zip(ranges, some, unit, strict=True)) == removed
    )
    found = sum(float(kept[n][b - 1]) for n, b in blocks.items())
    assert best - max(float(s.max()) for s in scores.values()) <= found <= best + 1e-9


def test_second_order_sees_what_the_diagonal_does_not():
    # Groups 2 and 3 do the same: one is dispensable, both are not. By the diagonal alone, both go.
    network = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 2))
    plan = plan_model(network, (4,), "1x1", "folded", "crossbar", exclude=["1"])
    layouts = prunable_layers(plan, "crossbar")
    (name,) = layouts
    a, b, c = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    slopes = {name: torch.stack([1.1 * a, 1.1 * c, b, b], 1)}
    masks = {name: torch.ones(1, 4, dtype=torch.bool)}
    assert plan.compute_crossbars == 6
    given = (slopes, masks, plan, layouts, 2 / 6)
    assert _descend(*given, steps=0, ridge=0.01)[name].tolist() == [[True, True, False, False]]
    assert _descend(*given, steps=20, ridge=0.01)[name].tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("grain", ["column", pytest.param("crossbar", marks=pytest.mark.slow)])
@pytest.mark.parametrize("solver", list(NETWORK_SOLVERS))
def test_every_solver_meets_the_budget_and_leaves_the_network_alone(solver, grain):
    network = trained()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    given = {"grain": grain, "solver": solver, "budget": "global", "ratio": 0.4}
    result = cp.prune(network, [images()], "18x8", "folded", **given)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
    target = 0.4 * result.dense_plan.compute_crossbars
    assert abs(result.plan.compute_crossbars - (result.dense_plan.compute_crossbars - target)) <= 1
    for mask in result.masks.values():
        assert bool(mask.any(dim=1).all())
    again = cp.prune(network, [images()], "18x8", "folded", **given)
    assert all(bool((result.masks[n] == again.masks[n]).all()) for n in result.masks)


@pytest.mark.parametrize("solver", list(NETWORK_SOLVERS))
def test_what_does_not_fit_is_said(solver):
    with pytest.raises(ConfigError, match="budget=global"):
        cp.prune(trained(), [images()], "18x8", "folded", solver=solver)
    with pytest.raises(ConfigError, match="reorder=none"):
        cp.prune(
            trained(), [images()], "18x8", "folded", solver=solver, budget="global",
            reorder="tetris",
        )  # fmt: skip


def test_masks_do_not_depend_on_scores_scale():
    network = trained()
    plan, layouts = planned(network)
    scores = {n: torch.rand(la.shape) for n, la in layouts.items()}
    small = choose_masks({n: 1e-6 * s for n, s in scores.items()}, plan, layouts, 0.4)
    large = choose_masks({n: 1e6 * s for n, s in scores.items()}, plan, layouts, 0.4)
    assert all(bool((small[n] == large[n]).all()) for n in scores)


@pytest.mark.slow
def test_the_agent_is_never_worse_than_no_agent_on_what_it_is_judged_by():
    network, x = trained(), images()
    plan, layouts = planned(network)
    users = users_of(plan, layouts)
    weights = {n: network.get_submodule(n).weight.clone() for n in layouts}

    def divergence(masks):
        pruned = trained()
        with torch.no_grad(), own_statistics(pruned), own_statistics(network):
            for name, mask in masks.items():
                weight = pruned.get_submodule(name).weight
                weight.masked_fill_(~layouts[name].expand_like(mask, weight), 0.0)
            now, before = pruned(x).log_softmax(1), network(x).log_softmax(1)
        return float(F.kl_div(now, before, log_target=True, reduction="batchmean"))

    found = graph_rl_masks(
        network, plan, layouts, users, 0.4, [x], torch.Generator().manual_seed(0)
    )
    slopes = group_slopes(network, layouts, users, weights, [x], torch.Generator().manual_seed(0))
    worth = {n: slopes[n].double().square().mean(0).view(la.shape) for n, la in layouts.items()}
    assert divergence(found) <= divergence(choose_masks(worth, plan, layouts, 0.4))


def test_batch_norms_keep_their_statistics():
    network = trained()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with own_statistics(network):
        network(images())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not network.norm.training


def test_nodes_see_their_own_layer_and_the_next():
    assert joined([1, 2, 1]).int().tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
        [0, 1, 1, 1],
    ]
