"""`cp.prune` from end to end on networks small enough to check everything."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset

import crosspruner as cp
from crosspruner.errors import (
    BudgetError,
    ConfigError,
    CrossprunerError,
    DataError,
    ModelError,
    SolverError,
)
from crosspruner.hardware import plan_model
from crosspruner.pruning.batch_norm import (
    NormSums,
    norm_references,
    reading_norms,
    reestimate,
    reestimate_all,
)
from crosspruner.pruning.budget import prunable_layers, uniform_budget
from crosspruner.pruning.layer_order import ORDERS
from crosspruner.pruning.moments import Moments
from crosspruner.pruning.walk import stops
from crosspruner.solver import RefitProblem
from crosspruner.sparsity import GroupLayout


def make_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 10, 3, padding=1, bias=False),
            nn.BatchNorm2d(10),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(10, 9, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(81, 7),
            nn.ReLU(),
            nn.Linear(7, 4),
        ).double()
    return net


def make_images(batches=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # What neighbouring pixels share makes inputs correlated, as in trained networks.
    noise = torch.randn(batches, 12, 3, 6, 6, generator=generator)
    return list(F.avg_pool2d(noise.flatten(0, 1), 3, 1, 1).unflatten(0, (batches, 12)) * 3)


def small(net=None, images=None, **settings):
    settings = {
        "crossbar": "36x16",
        "mapping": "folded",
        "kin": 2,
        "kout": 4,
        "ratio": 0.5,
        "solver": "greedy",
    } | settings
    return cp.prune(net or make_net(), images or make_images(), **settings)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_wide_layers_of_few_images_are_pruned_without_a_square_of_their_width(grain, monkeypatch):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 4)
    ).double()
    images = make_images(2)  # 24 patches of 64 rows
    # Small problems are tried out in full, larger ones searched on a stand-in, as this one is now.
    monkeypatch.setattr("crosspruner.solver.lgd_refit.MAX_FLOPS", 0.0)
    monkeypatch.setattr("crosspruner.solver.stand_in.FLOPS", 0.0)
    settings = {"grain": grain, "kin": 16, "solver": "lgd_rpp"}
    expected = small(net, images, **settings)

    def known(of):
        square = of.products if isinstance(of, Moments) else of.given
        assert square is not None, "made a moment of all rows"
        return square

    monkeypatch.setattr(Moments, "second", property(known))
    monkeypatch.setattr(RefitProblem, "moment", property(known))
    found = small(net, images, **settings)
    assert torch.equal(found.masks["2"], expected.masks["2"])
    assert not found.masks["2"].all()


def snapshot(net):
    return {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("solver", ["lgd_rpp", "greedy", "lgd_hard", "random"])
@pytest.mark.parametrize("refit", [False, True])
def test_a_network_is_pruned_on_its_own_device(solver, refit):
    net = make_net().cuda()
    result = small(net, solver=solver, refit=refit)
    assert all(p.is_cuda for p in result.model.parameters())
    assert all(torch.isfinite(torch.tensor(error)) for error in result.errors.values())
    assert abs(result.saved - 0.5) * result.dense_plan.compute_crossbars <= 0.5


@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("reorder", ["none", "importance", "tetris", "linear", "best"])
def test_the_budget_is_exact_and_the_plan_computes_the_network(grain, reorder):
    net = make_net()
    result = small(net, grain=grain, reorder=reorder, solver="lgd_rpp")
    dense = plan_model(net, (3, 6, 6), "36x16", result.plan.mapping, grain)
    layouts = prunable_layers(dense, grain)
    budget = uniform_budget(dense, layouts, 0.5)
    assert list(result.masks) == list(layouts) == ["2", "6", "9"]
    for name, mask in result.masks.items():
        layer = result.plan.layer(name)
        layout = GroupLayout.of(layer, grain)
        assert layout.blocks_of(mask) == budget[name] < layout.blocks
        assert layer.compute_crossbars == layout.crossbars(mask)
        assert bool(mask.any(dim=1).all())
        weight = result.model.get_submodule(name).weight
        assert not weight[~layout.expand(mask)].any()
        assert bool(weight[layout.expand(mask)].any())
        if reorder != "best":
            ordered = reorder in ("importance", "tetris") or (reorder == "linear" and name == "9")
            assert (layer.input_order is not None) == ordered
    assert result.saved == 1 - result.plan.compute_crossbars / dense.compute_crossbars
    assert result.saved == pytest.approx(0.5, abs=1 / dense.compute_crossbars)
    images = torch.cat(make_images()).double()
    with torch.no_grad():
        expected = result.model.eval()(images)
    torch.testing.assert_close(cp.simulate(result.plan, result.model, images), expected)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_the_best_order_is_that_with_the_best_answers(grain, monkeypatch):
    wanted, asked = ("importance", "none", "linear", "tetris"), []

    def error(half, network):
        asked.append(half)
        return 1.0 + wanted.index(ORDERS[(len(asked) - 1) // 2])

    monkeypatch.setattr("crosspruner.pruning.held_out.HeldOut.error", error)
    best = small(grain=grain, reorder="best")
    assert len(asked) == 2 * len(ORDERS)
    expected = small(grain=grain, reorder="importance")
    for name, mask in expected.masks.items():
        assert torch.equal(best.masks[name], mask)
        theirs = expected.plan.layer(name).input_order
        assert torch.equal(best.plan.layer(name).input_order, theirs)


def test_without_classes_the_best_order_is_none():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))
    result = small(net, reorder="best", ratio=0.1)
    assert result.saved > 0
    assert all(layer.input_order is None for layer in result.plan.layers)


@pytest.mark.parametrize(
    "solver", ["random", "magnitude", "taylor", "lasso", "lgd_hard", "obs_group"]
)
@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_every_solver_meets_the_budget(solver, grain):
    result = small(grain=grain, solver=solver, ratio=0.4)
    assert result.saved == pytest.approx(0.4, abs=1 / result.dense_plan.compute_crossbars)


def test_the_input_model_is_not_touched():
    net = make_net().train()
    net[3].eval()
    net(torch.cat(make_images()).double()).sum().backward()
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    hooks = [len(m._forward_hooks) for m in net.modules()]
    weights, modes = snapshot(net)
    grads = [p.grad.clone() for p in net.parameters()]
    result = small(net)
    after, modes_after = snapshot(net)
    assert all(torch.equal(weights[k], after[k]) for k in weights)
    assert modes == modes_after == [m.training for m in result.model.modules()]
    assert hooks == [len(m._forward_hooks) for m in net.modules()]
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, net.parameters(), strict=True))
    assert all(p.requires_grad for p in result.model.parameters())


def test_equal_calls_give_equal_results_and_leave_the_global_generator():
    state = torch.get_rng_state()
    first, second = (small(ratio=0.6, solver="lgd_rpp") for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_ratio_zero_changes_nothing():
    net = make_net()
    result = small(net, ratio=0)
    assert result.saved == 0
    for name, value in net.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])


def test_saved_files_load_into_the_vanilla_network(tmp_path):
    result = small(grain="column", reorder="importance")
    folder = result.save(tmp_path / "pruned")
    vanilla = make_net()
    vanilla.load_state_dict(load_file(folder / "weights.safetensors"))
    images = make_images(1)[0].double()
    assert torch.equal(vanilla.eval()(images), result.model.eval()(images))
    plan = cp.Plan.load(folder / "mapping.json")
    assert plan.compute_crossbars == result.plan.compute_crossbars
    masks = load_file(folder / "masks.safetensors")
    assert all(torch.equal(masks[k].bool(), mask) for k, mask in result.masks.items())
    torch.testing.assert_close(cp.simulate(plan, vanilla, images), vanilla(images).detach())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    result = small(solver="magnitude", refit=False)
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(ConfigError, match="there is a file: give another folder"):
            result.save(folder)


def output_error(result, net, images):
    with torch.no_grad():
        dense, pruned = net.eval()(images), result.model.eval()(images)
    return float((dense - pruned).square().mean() / dense.var())


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_the_refit_and_the_solver_lower_the_error(grain):
    net, images = make_net(), make_images(8)
    reestimate_all(net, [image.double() for image in images])
    whole = torch.cat(images).double()
    errors = {
        (solver, refit): small(net, images, grain=grain, solver=solver, refit=refit)
        for solver in ("random", "lgd_rpp")
        for refit in (False, True)
    }
    total = {key: sum(result.errors.values()) for key, result in errors.items()}
    assert total["lgd_rpp", False] < total["random", False]
    assert total["lgd_rpp", True] < total["random", True]
    assert total["lgd_rpp", True] < 0.85 * total["lgd_rpp", False]
    left = output_error(errors["lgd_rpp", True], net, whole)
    assert left < output_error(errors["random", False], net, whole)


def test_batch_norm_statistics_move_as_the_inputs_of_the_batch_norm_do():
    net = make_net()
    net[3].running_mean.uniform_(-1, 1)
    net[3].running_var.uniform_(0.5, 2)
    result = small(net, images=make_images(3))
    whole = torch.cat(make_images(3)).double()
    with torch.no_grad():
        dense, pruned = net.eval()[:3](whole), result.model.eval()[:3](whole)
    was, norm, eps = net[3], result.model[3], net[3].eps
    moved = pruned.mean((0, 2, 3)) - dense.mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, was.running_mean + moved)
    spread = [x.transpose(0, 1).flatten(1).var(1, correction=0) + eps for x in (dense, pruned)]
    grown = spread[1] / spread[0]
    torch.testing.assert_close(norm.running_var + eps, (was.running_var + eps) * grown)
    assert not torch.allclose(norm.running_var, was.running_var)


def test_a_batch_norm_before_which_nothing_changed_keeps_its_statistics():
    net, images = make_net().eval(), [image.double() for image in make_images(3)]
    net[3].running_mean.uniform_(-1, 1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    reference = norm_references(net, images)
    (norm,) = (stop for stop in stops(net, images[0], {}) if stop.modules[0] is net[3])
    reestimate(net, images, norm, reference[norm.name])
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-12, atol=0)


def test_batch_norms_read_in_one_pass_are_those_read_batch_by_batch():
    net, images = make_net().eval(), [image.double() for image in make_images(5)]
    with reading_norms(net) as references, torch.no_grad():
        net(torch.cat(images))
    expected, got = norm_references(net, images), references()
    assert list(got) == list(expected) == ["3"]
    for name in ("mean", "variance", "running_mean", "running_var"):
        torch.testing.assert_close(getattr(got["3"], name), getattr(expected["3"], name))
    assert not net[3]._forward_pre_hooks


def test_a_shifted_batch_norm_by_hand():
    norm = nn.BatchNorm1d(1, eps=0.5).double()
    norm.running_mean[:], norm.running_var[:] = 2.0, 4.0
    reads = torch.tensor([[0.0], [2.0]], dtype=torch.float64)  # mean 1, variance 1
    reference = norm_references(norm.eval(), [reads])[""]
    sums = NormSums(norm)
    sums.update(torch.tensor([[3.0], [7.0]], dtype=torch.float64))  # mean 5, variance 4
    sums.write("norm", reference)
    assert norm.running_mean.item() == 2 + (5 - 1)
    assert norm.running_var.item() == pytest.approx((4 + 0.5) * (4 + 0.5) / (1 + 0.5) - 0.5)


def test_a_channel_that_was_constant_gets_a_finite_variance():
    norm = nn.BatchNorm1d(1).double()
    reference = norm_references(norm.eval(), [torch.zeros(4, 1).double()])[""]
    for values in (torch.zeros(4, 1), torch.arange(4.0)[:, None]):
        sums = NormSums(norm)
        sums.update(values.double())
        sums.write("norm", reference)
        assert bool(norm.running_var.isfinite().all())
        assert norm.running_var.item() >= 0


def test_batches_of_one_image_give_the_same_batch_norm_as_one_batch():
    whole = torch.cat(make_images(2)).double()
    nets = [make_net(), make_net()]
    reestimate_all(nets[0], [whole])
    reestimate_all(nets[1], list(whole.split(1)))
    torch.testing.assert_close(nets[0][3].running_var, nets[1][3].running_var)


class Twice(nn.Module):
    """One weight in two modules, and a residual connection around them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.norm(self.b(self.a(x).relu()))
        return self.fc(x.mean((2, 3)))


def test_shared_weights_are_pruned_as_one(tmp_path):
    result = small(Twice().double(), ratio=0.4)
    assert result.model.a.weight is result.model.b.weight
    assert list(result.masks) == ["a"]
    images = make_images(1)[0].double()
    expected = result.model.eval()(images).detach()
    torch.testing.assert_close(cp.simulate(result.plan, result.model, images), expected)
    vanilla = Twice().double()
    vanilla.load_state_dict(load_file(result.save(tmp_path) / "weights.safetensors"))
    torch.testing.assert_close(vanilla.eval()(images).detach(), expected)


def test_a_generator_of_dictionaries_is_enough():
    batches = ({"image": images} for images in make_images())
    expected = small(images=make_images(), solver="lgd_rpp")
    got = cp.prune(
        *(make_net(), batches, "36x16", "folded"), ratio=0.5, kin=2, kout=4, grain="column"
    )
    assert torch.equal(got.model[2].weight, expected.model[2].weight)


@pytest.mark.parametrize("refit", [True, False])
def test_dead_layers_and_too_few_samples_stay_finite(refit):
    net = make_net()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1)  # ReLU leaves nothing
    for case in (net, make_net()):
        result = small(case, [torch.randn(1, 3, 6, 6)], refit=refit)
        assert all(bool(v.isfinite().all()) for v in result.model.state_dict().values())
        assert result.saved == pytest.approx(0.5, abs=0.05)


def single_images():
    """A data set without a loader: single images, each with its label."""
    return TensorDataset(make_images()[0], torch.zeros(12))


def broken_weight():
    net = make_net()
    with torch.no_grad():
        net[2].weight[0, 0, 0, 0] = torch.nan
    return net


def broken_activation():
    net = make_net()
    with torch.no_grad():
        net[0].bias[0] = torch.inf
    return net


def normed_weight():
    net = make_net()
    parametrizations.weight_norm(net[2])
    return net


@pytest.mark.parametrize(
    ("net", "settings", "error", "message"),
    [
        (make_net, {"images": [torch.zeros(0, 3, 6, 6)]}, DataError, "no images"),
        (make_net, {"images": [torch.full((2, 3, 6, 6), torch.nan)]}, DataError, "NaN"),
        (make_net, {"ratio": 0.99}, BudgetError, "largest feasible"),
        (make_net, {"solver": "magic"}, SolverError, "lgd_rpp"),
        (make_net, {"grain": "cell"}, ConfigError, "column"),
        (make_net, {"reorder": "sorted"}, ConfigError, "importance"),
        (make_net, {"budget": "all"}, ConfigError, "uniform"),
        (make_net, {"include": "nothing"}, ConfigError, "nothing"),
        (make_net, {"seed": -1}, ConfigError, "seed=-1: give a whole number of 0 or more"),
        (make_net, {"seed": None}, ConfigError, "seed=None"),
        (make_net, {"images": single_images()}, ModelError, "Wrap it in a DataLoader"),
        (make_net, {"images": [make_images()[0][0]]}, ModelError, r"shape \(3, 6, 6\).*\(B, C, H"),
        (make_net, {"input_shape": (1, 3, 6, 6)}, ModelError, "without the batch dimension"),
        (
            make_net,
            {"images": [torch.zeros(2, 3, 9, 9)], "input_shape": (3, 6, 6)},
            ModelError,
            "9",
        ),
        (broken_weight, {}, CrossprunerError, "NaN"),
        (broken_activation, {}, DataError, "2 meets NaN or Inf"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(net, settings, error, message):
    with pytest.raises(error, match=message):
        small(net(), **settings)
