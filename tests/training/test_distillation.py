"""Distillation: the loss by its formula, and the dense network of the run as teacher."""

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from crosspruner.errors import CheckpointError, ConfigError
from crosspruner.pruning.schedule import Phase
from crosspruner.pruning.snapshot import Snapshot
from crosspruner.training import Classifier
from crosspruner.training.data.mixing import Mixing
from crosspruner.training.distillation import Distillation
from crosspruner.training.soft_targets import soft_target_losses

from .test_average import SaveAt, data, layerwise, network, per_step


def test_the_distance_by_hand():
    # At T = 2: softmax(0, 2 ln 3 / 2) = (1/4, 3/4) against (1/2, 1/2)
    ours, theirs = torch.zeros(1, 2), torch.tensor([[0.0, 2 * math.log(3)]])
    expected = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert soft_target_losses(ours, theirs, 2.0).item() == pytest.approx(expected, rel=1e-6)
    assert soft_target_losses(theirs, theirs, 2.0).item() == 0


def test_the_training_loss_by_its_formula():
    """Smoothing, mixup and distillation together."""
    mixing = Mixing(3, mixup=1.0)
    module = Classifier(
        network(),
        partial(SGD, lr=0.1),
        None,
        0.1,
        seed=4,
        mixing=mixing,
        distill=0.3,
        temperature=3,
    )
    module.log = lambda *_, **__: None
    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    images, labels = torch.randn(7, 3, 8, 8), torch.arange(7) % 3
    module.learn_from(teacher)
    found = module.training_step((images, labels), 2)
    mixed, shares = mixing(images, labels, (4, 0, 2, 0))
    logits, taught = module.net(mixed), teacher(mixed)
    smooth = 0.9 * shares + 0.1 / 3
    hard = -(smooth * logits.log_softmax(1)).sum(1).mean()
    p, q = (taught / 3).softmax(1), (logits / 3).softmax(1)
    soft = 9 * (p * (p / q).log()).sum(1).mean()
    assert found.item() == pytest.approx((0.7 * hard + 0.3 * soft).item(), rel=1e-4)
    module.learn_from(None)
    found = module.training_step((images, labels), 2)
    assert found.item() == pytest.approx(hard.item(), rel=1e-4)


@pytest.mark.parametrize(("weight", "temperature"), [(-0.1, 4), (1.5, 4), (0.5, 0)])
def test_weight_and_temperature_out_of_range(weight, temperature):
    with pytest.raises(ConfigError, match="distill="):
        Classifier(network(), SGD, distill=weight, temperature=temperature)


class Look(pl.Callback):
    """Notes when there is a teacher, and what it says."""

    def __init__(self):
        self.steps, self.says = [], None
        self.images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.teacher is not None:
            self.steps.append(trainer.global_step)
            self.says = module.teacher(self.images)


def fit(make_trainer, folder, pruning, epochs=4, extra=(), distill=0.5, **given):
    snapshot = Snapshot(folder / "dense.safetensors", pruning, Phase.PRUNE)
    look = Look()
    module = Classifier(network(), partial(SGD, lr=0.05), seed=0, distill=distill)
    callbacks = [snapshot, Distillation(snapshot), pruning, look, *extra]
    trainer = make_trainer(max_epochs=epochs, callbacks=callbacks)
    trainer.fit(module, data(), **given)
    return trainer, module, look


@pytest.mark.parametrize("make", [per_step, pytest.param(layerwise, marks=pytest.mark.slow)])
def test_the_teacher_is_the_dense_network_of_the_run(make_trainer, tmp_path, make):
    pruning = make()
    _, module, look = fit(make_trainer, tmp_path, pruning)
    total = 4 * 4  # 64 training images in batches of 16
    first = pruning.schedule.boundaries(total)[0] + 1
    assert look.steps == list(range(first, total + 1))
    dense = network().eval()
    dense.load_state_dict(load_file(tmp_path / "dense.safetensors"))
    assert torch.allclose(look.says, dense(look.images), atol=1e-5)
    assert not look.says.requires_grad
    assert module.teacher is None  # its memory is free
    assert [key for key in module.state_dict() if key.startswith("net.")] == [
        f"net.{key}" for key in network().state_dict()
    ]
    _, plain, _ = fit(make_trainer, tmp_path, make(), distill=0.0)
    assert not torch.equal(plain.net[3].weight, module.net[3].weight)


@pytest.mark.parametrize("epoch", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_resumed_run_learns_from_the_same_teacher(make_trainer, tmp_path, epoch):
    first, second = tmp_path / "a", tmp_path / "b"
    path = first / "last.ckpt"
    _, expected, look = fit(make_trainer, first, per_step(), extra=[SaveAt(epoch, path)])
    _, module, again = fit(make_trainer, second, per_step(), ckpt_path=path)
    assert torch.equal(again.says, look.says)
    for key, value in expected.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key


def test_a_lost_teacher_is_named(make_trainer, tmp_path):
    path = tmp_path / "a" / "last.ckpt"
    fit(make_trainer, tmp_path / "a", per_step(), extra=[SaveAt(2, path)])
    (tmp_path / "a" / "dense.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"dense\.safetensors is not beside the checkpoint"):
        fit(make_trainer, tmp_path / "b", per_step(), ckpt_path=path)


def test_smoothed_cross_entropy_of_plain_labels():
    module = Classifier(network(), partial(SGD, lr=0.1), None, 0.2)
    module.log = lambda *_, **__: None
    images, labels = torch.randn(5, 3, 8, 8), torch.arange(5) % 3
    expected = cross_entropy(module.net(images), labels, label_smoothing=0.2)
    assert module.training_step((images, labels), 0).item() == pytest.approx(expected.item())
