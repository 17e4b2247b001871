"""Pruning in a plain training loop: the masks of the callback, and everything a loop may do."""

import copy
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

import crosspruner as cp
from crosspruner.errors import BudgetError, CheckpointError, ConfigError
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.pruning.step_settings import STEP_SOLVERS, StepSettings

from .test_callback import Tiny, batches, fit, pruning, pytestmark  # noqa: F401

STEPS = 24
SLOW = pytest.mark.slow


def network():
    pl.seed_everything(0, verbose=False)
    return Tiny()


def attached(model, optimizer, **given):
    values = {
        "crossbar": "16x8",
        "mapping": "folded",
        "ratio": 0.5,
        "schedule": PruningSchedule(1, 2, 1, warmup=0.2, hold=0.1),
        "settings": StepSettings(moment_every=1, refresh_every=2, moment_rows=32),
        "input_shape": (2, 4, 4),
        "total_steps": STEPS,
    }
    return cp.attach(model, optimizer, **{**values, **given})


def endless():
    while True:
        yield from batches()


def train(model, optimizer, pruning, steps, stream=None, forward=None):
    stream = stream or endless()
    forward = model if forward is None else forward
    for _ in range(steps):
        images, labels = next(stream)
        optimizer.zero_grad()
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()
        pruning.step()


def run(**given):
    model = network()
    optimizer = model.configure_optimizers()
    pruning = attached(model, optimizer, **given)
    train(model, optimizer, pruning, STEPS)
    return model, pruning


def assert_zeros(model, pruning):
    for name, layer in pruning.layers.items():
        weight = model.get_submodule(name).weight
        kept = layer.kept.expand_as(weight)
        assert not weight[~kept].any()
        assert bool(weight[kept].any())


@pytest.mark.parametrize(
    ("solver", "grain"),
    [
        pytest.param(solver, grain, marks=[SLOW] if solver != "lgd_rpp" else [])
        for solver in STEP_SOLVERS
        for grain in ("crossbar", "column")
    ],
)
def test_a_plain_loop_ends_with_the_masks_and_weights_of_the_callback(grain, solver):
    settings = StepSettings(name=solver, moment_every=1, refresh_every=2, moment_rows=32)
    callback = pruning(grain=grain, settings=settings)
    _, module = fit(callback)
    model, ours = run(grain=grain, settings=settings)
    assert ours.frozen
    assert not all(mask.all() for mask in ours.masks.values())
    for name, mask in callback.masks.items():
        assert torch.equal(ours.masks[name], mask), name
    for weight, theirs in zip(model.parameters(), module.parameters(), strict=True):
        assert torch.equal(weight, theirs)
    assert ours.plan.to_dict() == callback.plan.to_dict()


def test_the_budget_is_exact_and_what_is_pruned_is_zero():
    model, ours = run()
    smallest = min(layout.crossbars_per_block for layout in ours.layouts.values())
    dense = ours.dense_plan.compute_crossbars
    assert abs(ours.compute_crossbars - 0.5 * dense) <= smallest / 2
    assert ours.compute_crossbars == ours.plan.compute_crossbars
    assert ours.saved == 1 - ours.compute_crossbars / dense
    assert ours.metrics(STEPS)["crossbars/compute"] == ours.compute_crossbars
    assert_zeros(model, ours)
    assert list(model.state_dict()) == list(Tiny().state_dict())


@pytest.mark.parametrize("stop", [8, 13, *(pytest.param(n, marks=SLOW) for n in (3, 20))])
def test_a_stopped_loop_goes_on_bit_for_bit(tmp_path, stop):
    model, straight = run()

    first = network()
    optimizer = first.configure_optimizers()
    ours = attached(first, optimizer)
    train(first, optimizer, ours, stop)
    state = {"model": first, "optimizer": optimizer, "pruning": ours}
    torch.save({key: part.state_dict() for key, part in state.items()}, tmp_path / "stop.pt")

    torch.manual_seed(7)  # another start, which the state must overwrite
    second = Tiny()
    optimizer = second.configure_optimizers()
    ours = attached(second, optimizer)
    saved = torch.load(tmp_path / "stop.pt", weights_only=True)
    second.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    ours.load_state_dict(saved["pruning"])
    stream = endless()
    for _ in range(stop):
        next(stream)
    train(second, optimizer, ours, STEPS - stop, stream)
    for name, mask in straight.masks.items():
        assert torch.equal(ours.masks[name], mask)
    for weight, theirs in zip(second.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, theirs)


def test_the_state_of_another_network_is_refused():
    _, ours = run()
    model = network()
    other = attached(model, model.configure_optimizers(), ratio=0.4)
    with pytest.raises(CheckpointError, match=r"ratio=0\.5"):
        other.load_state_dict(ours.state_dict())


def test_accumulated_gradients_count_once():
    model = network()
    optimizer = model.configure_optimizers()
    ours = attached(model, optimizer, total_steps=STEPS // 2)
    stream = endless()
    for batch in range(STEPS):
        images, labels = next(stream)
        (F.cross_entropy(model(images), labels) / 2).backward()
        if batch % 2:
            optimizer.step()
            optimizer.zero_grad()
        ours.step()
    assert ours.steps == STEPS // 2
    assert ours.frozen
    assert_zeros(model, ours)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
def test_a_gradient_scaler_that_skips_a_step_skips_pruning_too():
    model = network()
    optimizer = model.configure_optimizers()
    ours = attached(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    stream = endless()
    for number in range(STEPS + 1):
        images, labels = next(stream)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        if number == 4:
            model.body[0].weight.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        ours.step()
        assert ours.steps == number + (number < 4)
    assert ours.frozen
    assert_zeros(model, ours)


def test_evaluation_without_gradients_leaves_no_trace():
    _, straight = run()
    model = network()
    optimizer = model.configure_optimizers()
    ours = attached(model, optimizer)
    stream = endless()
    for _ in range(STEPS):
        train(model, optimizer, ours, 1, stream)
        with torch.no_grad():
            model(torch.randn(5, 2, 4, 4))
    for name, mask in straight.masks.items():
        assert torch.equal(ours.masks[name], mask)


def test_a_compiled_network_gets_the_masks_of_the_plain_one():
    _, straight = run()
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = model.configure_optimizers()
    compiled(torch.randn(8, 2, 4, 4))  # compiled before anything watches its layers
    ours = attached(compiled, optimizer)
    train(model, optimizer, ours, STEPS, forward=compiled)
    assert list(ours.masks) == list(straight.masks)
    for name, mask in straight.masks.items():
        assert torch.equal(ours.masks[name], mask)
    assert_zeros(model, ours)


def test_frozen_masks_stay_and_detached_ones_let_go():
    model = network()
    optimizer = model.configure_optimizers()
    ours = attached(model, optimizer)
    train(model, optimizer, ours, 12)
    assert ours.phase_at(ours.steps) is Phase.PRUNE
    ours.freeze()
    masks = ours.masks
    assert not all(mask.all() for mask in masks.values())
    train(model, optimizer, ours, 12)
    assert all(torch.equal(ours.masks[name], mask) for name, mask in masks.items())
    assert_zeros(model, ours)

    ours.detach()
    ours.detach()
    hooks = [m._forward_pre_hooks or m._forward_hooks for m in model.modules()]
    assert not any(hooks)
    assert not optimizer._optimizer_step_pre_hooks
    optimizer.step()
    optimizer.step()
    with pytest.raises(ConfigError, match="after detach"):
        ours.step()


def test_saved_files_load_into_the_vanilla_network(tmp_path):
    from safetensors.torch import load_file

    model, ours = run()
    folder = ours.save(tmp_path / "pruned")
    vanilla = Tiny()
    vanilla.load_state_dict(load_file(folder / "weights.safetensors"))
    images = torch.randn(3, 2, 4, 4)
    assert torch.equal(vanilla(images), model(images))
    assert cp.Plan.load(folder / "mapping.json").compute_crossbars == ours.compute_crossbars


def test_a_loop_that_forgets_step_is_told():
    model = network()
    optimizer = model.configure_optimizers()
    attached(model, optimizer)
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(ConfigError, match="call it after each optimizer"):
        optimizer.step()


def test_closures_are_refused():
    model = network()
    optimizer = model.configure_optimizers()
    attached(model, optimizer)
    with pytest.raises(ConfigError, match="without a closure"):
        optimizer.step(lambda: model(torch.randn(2, 2, 4, 4)).sum())


def test_wrong_arguments_get_one_message():
    model = network()
    optimizer = model.configure_optimizers()
    with pytest.raises(ConfigError, match="total_steps=0"):
        attached(model, optimizer, total_steps=0)
    with pytest.raises(ConfigError, match=r"cp\.attach\(model, optimizer"):
        attached(model, model.parameters())
    with pytest.raises(ConfigError, match="trains none of this network's parameters"):
        attached(network(), optimizer)
    with pytest.raises(ConfigError, match=r"ratio=1\.5"):
        attached(model, optimizer, ratio=1.5)
    with pytest.raises(ConfigError, match=r"ratio='0\.5' is no number"):
        attached(model, optimizer, ratio="0.5")
    with pytest.raises(BudgetError, match="largest feasible ratio"):
        attached(model, optimizer, ratio=0.97)
    assert not optimizer._optimizer_step_pre_hooks


def test_one_shot_pruning_takes_a_lightning_module():
    """The module as a fit leaves it, the trainer and all."""
    _, module = fit(pruning(ratio=0.0))
    before = copy.deepcopy(module.state_dict())
    result = cp.prune(module, batches(), "16x8", "folded", ratio=0.4, solver="magnitude")
    assert result.saved > 0.3
    vanilla = Tiny()
    vanilla.load_state_dict(result.model.state_dict())
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())


@SLOW
def test_attach_needs_no_lightning():
    probe = (
        "import sys, torch, crosspruner as cp\n"
        "model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8),"
        " torch.nn.Linear(8, 2))\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.1)\n"
        "cp.attach(model, optimizer, '4x4', ratio=0.2, total_steps=4, input_shape=(8,)).detach()\n"
        "result = cp.prune(model, [torch.randn(32, 8)], '4x4', ratio=0.2)\n"
        "cp.hold(result, torch.optim.SGD(result.model.parameters(), 0.1))\n"
        "names = ('pytorch_lightning', 'lightning', 'hydra', 'wandb')\n"
        "print([name for name in names if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
