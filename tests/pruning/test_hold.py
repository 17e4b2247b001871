"""What `prune` returned, fine-tuned in a loop or by Lightning: the zeros hold."""

import pytest
import pytorch_lightning as pl
import torch

import crosspruner as cp
from crosspruner.errors import ConfigError, PlanError
from crosspruner.sparsity import GroupLayout

from .test_attach import STEPS, train
from .test_callback import SaveAt, Tiny, batches, fit, pytestmark  # noqa: F401


def pruned(**given):
    pl.seed_everything(0, verbose=False)
    how = {"solver": "magnitude", "ratio": 0.4, "grain": "crossbar", **given}
    return cp.prune(Tiny(), batches(), "16x8", "folded", **how)


def assert_held(network, result):
    zeros = 0
    for name, mask in result.masks.items():
        layer = result.plan.layer(name)
        weight = network.get_submodule(name).weight
        kept = GroupLayout.of(layer, result.plan.grain).expand_like(mask, weight)
        kept = kept.expand_as(weight)
        assert not weight[~kept].any()
        assert bool(weight[kept].all())
        zeros += int((~kept).sum())
    assert zeros > 0


@pytest.mark.parametrize(
    ("grain", "reorder"),
    [
        ("column", "none"),
        ("crossbar", "importance"),
        pytest.param("column", "importance", marks=pytest.mark.slow),
        pytest.param("column", "tetris", marks=pytest.mark.slow),
        pytest.param("crossbar", "none", marks=pytest.mark.slow),
        pytest.param("crossbar", "tetris", marks=pytest.mark.slow),
    ],
)
def test_a_loop_and_lightning_end_alike_and_hold_the_zeros(grain, reorder):
    ours, theirs = (pruned(grain=grain, reorder=reorder) for _ in range(2))
    before = ours.model.body[2].weight.detach().clone()
    optimizer = ours.model.configure_optimizers()
    held = cp.hold(ours, optimizer)
    train(ours.model, optimizer, held, STEPS)
    assert held.frozen
    assert held.compute_crossbars == ours.plan.compute_crossbars
    assert held.plan.to_dict() == ours.plan.to_dict()
    assert held.saved == ours.saved
    assert not torch.equal(ours.model.body[2].weight, before)
    assert_held(ours.model, ours)

    callback = cp.HeldMasks(theirs)
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(theirs.model, batches())
    assert_held(theirs.model, theirs)
    for weight, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_a_stopped_loop_goes_on(tmp_path):
    straight, other = pruned(), pruned()
    optimizer = straight.model.configure_optimizers()
    train(straight.model, optimizer, cp.hold(straight, optimizer), 12)

    optimizer = other.model.configure_optimizers()
    held = cp.hold(other, optimizer)
    train(other.model, optimizer, held, 6)
    state = {"pruning": held.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "model": other.model.state_dict()}, tmp_path / "stop.pt")

    network = Tiny()
    optimizer = network.configure_optimizers()
    held = cp.hold(other, optimizer, network)
    saved = torch.load(tmp_path / "stop.pt", weights_only=True)
    network.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    held.load_state_dict(saved["pruning"])
    train(network, optimizer, held, 6)  # six batches are an epoch
    for weight, theirs in zip(network.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(weight, theirs)


def test_lightning_resumes(tmp_path):
    result = pruned()

    def tuned(**given):
        module = Tiny()
        module.load_state_dict(result.model.state_dict())
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[cp.HeldMasks(result), SaveAt(0, tmp_path / "a.ckpt")],
        )
        trainer.fit(module, batches(), **given)
        return module

    straight = tuned()
    resumed = tuned(ckpt_path=tmp_path / "a.ckpt")
    assert_held(resumed, result)
    for weight, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(weight, theirs)


def test_another_network_is_refused():
    result = pruned()
    other = torch.nn.Sequential(torch.nn.Linear(4, 4))
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    with pytest.raises(PlanError, match="give the network that was pruned"):
        cp.hold(result, optimizer, other)
    with pytest.raises(PlanError, match="root=NAME"):
        fit(cp.HeldMasks(result, root="body"))
    with pytest.raises(ConfigError, match="give the torch optimizer"):
        cp.hold(result, None)


def test_an_optimizer_of_another_network_is_refused():
    """The dense network's above all: `prune` returns a copy, which would never be trained."""
    dense = Tiny()
    result = cp.prune(dense, batches(), "16x8", "folded", solver="magnitude", ratio=0.4)
    optimizer = dense.configure_optimizers()
    with pytest.raises(ConfigError, match=r"build it from result\.model\.parameters\(\)$"):
        cp.hold(result, optimizer)
    with pytest.raises(ConfigError, match=r"build it from model\.parameters\(\)$"):
        cp.hold(result, optimizer, Tiny())
    assert not optimizer._optimizer_step_pre_hooks
    some = torch.optim.SGD([*list(result.model.parameters())[:1], *dense.parameters()], 0.1)
    cp.hold(result, some)  # a part of the network, and something else beside it
