"""Noise-aware training: weights are a chip's in the forward pass, and themselves ever after."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from crosspruner.hardware import Crossbar, Device, device_weights
from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.device_noise import DeviceNoise
from crosspruner.pruning.schedule import PruningSchedule

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


class Net(pl.LightningModule):
    """Two linear layers; notes the weights that each forward pass in training sees."""

    def __init__(self, rate=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        self.rate = rate
        self.seen, self.clean = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.net[0].weight.detach().clone())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer):
        self.clean.append(self.net[0].weight.detach().clone())
        slope = self.net[0].weight.grad
        self.slope = None if slope is None else slope.clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Transposed(Net):
    """A transposed convolution with as many inputs as outputs instead of the first layer."""

    def __init__(self, rate):
        super().__init__(rate)
        self.net = nn.Sequential(
            nn.Unflatten(1, (12, 1)), nn.ConvTranspose1d(12, 12, 1), nn.Flatten(), nn.Linear(12, 3)
        )

    def training_step(self, batch, batch_idx):
        self.seen.append(self.net[1].weight.detach().clone())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer):
        self.clean.append(self.net[1].weight.detach().clone())


def fit(device, ratio=0.0, rate=0.1, epochs=1, seed=0, kind=Net, accumulate=1, **schedule):
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(torch.randn(8, 12), torch.randint(3, (8,))), batch_size=4)
    module = kind(rate)
    pruning = CrossbarPruning(
        Crossbar(4, 4, differential=True), ratio=ratio, input_shape=(12,), root="net", exclude=(),
        schedule=PruningSchedule(**schedule) if schedule else None,
    )  # fmt: skip
    pl.Trainer(
        max_epochs=epochs, callbacks=[pruning, DeviceNoise(device, pruning, seed)], logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        accelerator="cpu", accumulate_grad_batches=accumulate,
    ).fit(module, loader)  # fmt: skip
    return module, pruning


def test_forward_sees_a_chip_and_the_optimizer_the_weights():
    module, _ = fit(Device(lognormal=0.2), rate=0.0)
    start = Net().net[0].weight.detach()
    assert all(torch.equal(clean, start) for clean in module.clean)
    assert torch.equal(module.net[0].weight, start)
    assert not torch.equal(module.seen[0], start)
    assert not torch.equal(module.seen[0], module.seen[1])  # another chip each step


def test_weights_in_the_forward_pass_are_those_of_the_device():
    device = Device(weight_bits=3)
    module, pruning = fit(device, rate=0.0)
    expected = device_weights(pruning.plan, Net().net, device, [0])
    assert torch.equal(module.seen[0], expected["0.weight"][0])


def test_the_gradient_is_that_of_the_chip():
    module, _ = fit(Device(weight_bits=2), rate=1.0)
    torch.manual_seed(1)
    x, labels = torch.randn(8, 12), torch.randint(3, (8,))
    chip = Net().net
    for i in (0, 2):
        steps = chip[i].weight.abs().max().detach()  # two bits: -1, 0, 1
        with torch.no_grad():
            chip[i].weight.copy_((chip[i].weight / steps).round() * steps)
    nn.functional.cross_entropy(chip(x[:4]), labels[:4]).backward()
    step = module.clean[1] - module.clean[0]
    torch.testing.assert_close(step, -chip[0].weight.grad)


def test_noise_waits_for_fine_tuning_and_leaves_pruned_weights_zero():
    module, pruning = fit(
        Device(lognormal=0.2), ratio=0.3, epochs=4,
        dense_epochs=1, prune_epochs=2, finetune_epochs=1, warmup=0.0,
    )  # fmt: skip
    noisy = [not torch.equal(s, c) for s, c in zip(module.seen, module.clean, strict=True)]
    assert noisy == [False] * 6 + [True] * 2
    kept = pruning.plan.layer("0").kept
    assert not bool(kept.all())
    assert bool((module.net[0].weight[~kept] == 0).all())
    assert bool((module.seen[-1][~kept] == 0).all())


def test_a_square_transposed_convolution_keeps_its_zeros_under_noise():
    module, pruning = fit(
        Device(lognormal=0.2), ratio=0.3, epochs=4, kind=Transposed,
        dense_epochs=1, prune_epochs=2, finetune_epochs=1, warmup=0.0,
    )  # fmt: skip
    kept = pruning.plan.layer("1").kept.T  # (input, output), as its weight
    assert not torch.equal(kept, kept.T)
    for weight in (module.net[1].weight, module.seen[-1]):
        assert torch.equal(weight[..., 0] != 0, kept)
    assert not torch.equal(module.seen[-1], module.clean[-1])


def test_the_same_seed_meets_the_same_chips():
    one, two, other = (fit(Device(lognormal=0.2), seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.net[0].weight, two.net[0].weight)
    assert not torch.equal(one.net[0].weight, other.net[0].weight)


@pytest.mark.parametrize(
    "device", [Device(lognormal=1.0), Device(lognormal=1.0, weight_bits=2)], ids=["drawn", "stored"]
)
def test_batch_norms_are_those_of_weights_without_chance(device):
    class Normed(Net):
        def __init__(self):
            super().__init__(rate=0.0)
            self.net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    torch.manual_seed(1)
    images, labels = torch.randn(8, 12), torch.randint(3, (8,))
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    module = Normed()
    start = module.net[0].weight.detach().clone()
    pruning = CrossbarPruning(
        Crossbar(4, 4, differential=True), ratio=0.0, input_shape=(12,), root="net"
    )
    pl.Trainer(
        max_epochs=1, callbacks=[pruning, DeviceNoise(device, pruning)],
        logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, accelerator="cpu",
    ).fit(module, loader)  # fmt: skip
    assert torch.equal(module.net[0].weight, start)
    weight = start
    if device.weight_bits:  # -1, 0 or 1 times the largest
        weight = (start / start.abs().max()).round() * start.abs().max()
    read = nn.functional.linear(images, weight, module.net[0].bias).detach()
    torch.testing.assert_close(module.net[1].running_mean, read.mean(0))
    torch.testing.assert_close(module.net[1].running_var, read.var(0))


def test_array_effects_are_left_out():
    module, _ = fit(Device(adc_bits=4, read_noise=0.1, wire_ohms=1.0))
    assert all(torch.equal(s, c) for s, c in zip(module.seen, module.clean, strict=True))


class Skips(Net):
    """Gives no loss for one of the two batches of an epoch."""

    skipped = 0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == self.skipped else loss


class SkipsSecond(Skips):
    skipped = 1


NO_LOSS = pytest.mark.filterwarnings("ignore:.*training_step. returned .None")


@NO_LOSS
@pytest.mark.parametrize("kind", [Skips, SkipsSecond])
def test_a_step_without_a_loss_leaves_the_weights_as_they_were(kind):
    module, _ = fit(Device(lognormal=0.2), rate=0.0, epochs=2, kind=kind)
    start = Net().net[0].weight
    assert not torch.equal(module.seen[0], start)
    assert all(torch.equal(clean, start) for clean in module.clean)
    assert torch.equal(module.net[0].weight, start)


@NO_LOSS
def test_a_step_on_accumulated_gradients_is_taken_on_the_weights_themselves():
    module, _ = fit(Device(lognormal=0.2), kind=SkipsSecond, accumulate=2)
    start = Net().net[0].weight
    assert torch.equal(module.clean[0], start)
    step = module.net[0].weight - start
    assert bool(step.any())
    torch.testing.assert_close(step, -0.1 * module.slope)


def test_a_failing_step_leaves_the_weights_as_they_were():
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise ValueError("no")

    module = Broken()
    pruning = CrossbarPruning(
        Crossbar(4, 4, differential=True), ratio=0.0, input_shape=(12,), root="net"
    )
    loader = DataLoader(TensorDataset(torch.randn(4, 12), torch.zeros(4).long()), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[pruning, DeviceNoise(Device(lognormal=0.5), pruning)],
        logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no"):
        trainer.fit(module, loader)
    assert not torch.equal(module.seen[0], Net().net[0].weight)
    assert torch.equal(module.net[0].weight, Net().net[0].weight)
