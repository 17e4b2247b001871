"""The moving average of weights: its recurrence, its zeros, what is validated and resumed."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import SGD

from crosspruner.errors import CheckpointError, ConfigError
from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.layerwise_callback import LayerwisePruning
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.pruning.snapshot import Snapshot
from crosspruner.pruning.step_settings import StepSettings
from crosspruner.sparsity import GroupLayout
from crosspruner.training import Classifier
from crosspruner.training.average import TRAINED, WeightAverage
from crosspruner.training.data import SyntheticData

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty")


class One(nn.Module):
    """A layer under no mask, and a batch norm whose statistics are averaged as well."""

    def __init__(self, value):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.norm = nn.BatchNorm1d(1)
        nn.init.constant_(self.layer.weight, value)


class NothingPruned:
    layers, frozen, root = {}, False, ""


def test_the_recurrence_by_hand():
    network = One(1.0)
    average = WeightAverage(0.25, NothingPruned())
    average.start(network)
    average.update(network)
    assert average.average["layer.weight"].item() == 1.0
    with torch.no_grad():
        network.layer.weight.fill_(5.0)
        network.norm.running_mean.fill_(4.0)
        network.norm.num_batches_tracked.fill_(9)
    average.update(network)  # d_2 = min(1/4, 3/12)
    assert average.average["layer.weight"].item() == 0.25 * 1 + 0.75 * 5
    assert average.average["norm.running_mean"].item() == 0.75 * 4
    assert average.average["norm.num_batches_tracked"].item() == 9
    average.update(network)  # d_3 = min(1/4, 4/13)
    assert average.average["layer.weight"].item() == 0.25 * 4 + 0.75 * 5


def test_the_first_steps_do_not_linger():
    network = One(0.0)
    average = WeightAverage(0.9999, NothingPruned())
    average.start(network)
    nn.init.constant_(network.layer.weight, 11.0)
    average.update(network)
    assert average.average["layer.weight"].item() == pytest.approx(11 * (1 - 2 / 11))


def test_what_comes_back_in_a_square_transposed_convolution_starts_at_its_weight():
    # (input, output): output 0 gets input 1 back
    network = nn.Sequential(nn.ConvTranspose2d(2, 2, 1, bias=False))
    nn.init.ones_(network[0].weight)
    layer = MaskedLayer(network[0], GroupLayout("0", "column", 2, 2, 1, 1, 1))
    layer.set_mask(torch.tensor([[True, False], [True, True]]))
    pruning = NothingPruned()
    pruning.layers = {"0": layer}
    average = WeightAverage(0.25, pruning)
    average.start(network)
    layer.set_mask(torch.ones(2, 2, dtype=torch.bool))
    nn.init.constant_(network[0].weight, 5.0)
    average.update(network)  # d_1 = 2 / 11
    rest = 1 * 2 / 11 + 5 * 9 / 11
    found = average.average["0.weight"][..., 0, 0].flatten().tolist()
    assert found == pytest.approx([rest, rest, 5.0, rest])


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, float("nan")])
def test_a_decay_out_of_range(decay):
    with pytest.raises(ConfigError, match=r"ema=\S+ is out of range"):
        WeightAverage(decay, NothingPruned())


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def data(**given):
    return SyntheticData(num_images=90, num_classes=3, image_size=8, batch_size=16, **given)


def per_step():
    return CrossbarPruning(
        *("18x4", "folded", "crossbar", 0.3, PruningSchedule(1, 2, 1, warmup=0.2, relax=0.5)),
        settings=StepSettings(moment_every=1, refresh_every=2, moment_rows=32),
        input_shape=(3, 8, 8),
        root="net",
    )


def layerwise():
    return LayerwisePruning(
        *("18x4", "folded", "crossbar", 0.3, PruningSchedule(1, 0, 2)),
        settings=LayerwiseSettings(solver="magnitude"),
        calibration_images=24,
        input_shape=(3, 8, 8),
        root="net",
    )


class ByHand(pl.Callback):
    """Averages the same network by the formula, and looks at what is validated."""

    def __init__(self, pruning, average):
        self.pruning, self.average = pruning, average
        self.expected, self.masks, self.count, self.frozen = None, None, 0, False
        self.revived = self.steps = self.restarts = 0

    def weights(self, module):
        return {k: v.detach().double().clone() for k, v in module.net.state_dict().items()}

    def on_train_start(self, trainer, module):
        self.expected, self.masks = self.weights(module), self.pruning.masks

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now, masks = self.weights(module), self.pruning.masks
        self.steps += 1
        self.count += 1
        if self.pruning.frozen and not self.frozen:
            self.frozen, self.expected, self.count = True, now, 0
            self.restarts += 1
        else:
            d = min(0.8, (1 + self.count) / (10 + self.count))
            self.expected = {k: d * self.expected[k] + (1 - d) * now[k] for k in now}
            for name, layer in self.pruning.layers.items():
                key = f"{name}.weight"
                shape = now[key].shape
                kept = layer.layout.expand_like(masks[name], now[key]).expand(shape)
                was = layer.layout.expand_like(self.masks[name], now[key]).expand(shape)
                self.revived += int((kept & ~was).sum())
                self.expected[key] = torch.where(kept & ~was, now[key], self.expected[key])
                self.expected[key] = torch.where(kept, self.expected[key], 0.0)
        self.masks = masks
        for key, value in self.average.average.items():
            if value.is_floating_point():
                assert torch.allclose(value.double(), self.expected[key], atol=1e-5), key
        for name, layer in self.pruning.layers.items():
            value = self.average.average[f"{name}.weight"]
            assert not value[~layer.kept.expand_as(value)].any()

    def on_validation_start(self, trainer, module):
        for key, value in module.net.state_dict().items():
            if value.is_floating_point():
                assert torch.allclose(value.double(), self.expected[key], atol=1e-5), key


def fit(make_trainer, pruning, epochs, extra=(), **given):
    average = WeightAverage(0.8, pruning)
    torch.manual_seed(1)
    module = Classifier(network(), partial(SGD, lr=0.05, momentum=0.9), seed=0)
    trainer = make_trainer(max_epochs=epochs, callbacks=[pruning, average, *extra])
    trainer.fit(module, data(), **given)
    return trainer, module, average


@pytest.mark.parametrize("make", [per_step, layerwise])
def test_average_in_a_fit_by_hand_with_pruned_and_revived_groups(make_trainer, make):
    pruning = make()
    average = WeightAverage(0.8, pruning)
    watch = ByHand(pruning, average)
    module = Classifier(network(), partial(SGD, lr=0.2, momentum=0.9), seed=0)
    trainer = make_trainer(
        max_epochs=4 if make is per_step else 3, callbacks=[pruning, average, watch]
    )
    trainer.fit(module, data())
    assert watch.restarts == 1
    assert watch.revived > 0 or make is layerwise
    # After the fit the network is the average.
    for key, value in module.net.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, average.average[key])
    for name, layer in pruning.layers.items():
        weight = module.net.get_submodule(name).weight
        assert not weight[~layer.kept.expand_as(weight)].any()
        assert not pruning.masks[name].all()


class SaveAt(pl.Callback):
    def __init__(self, epoch, path):
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("epoch", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 3))])
def test_a_resumed_run_ends_alike(make_trainer, tmp_path, epoch):
    path = tmp_path / "a.ckpt"
    _, expected, straight = fit(make_trainer, per_step(), 5, [SaveAt(epoch, path)])
    _, module, average = fit(make_trainer, per_step(), 5, ckpt_path=path)
    for key, value in expected.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    assert average.updates == straight.updates


def test_checkpoints_hold_the_average_and_what_training_goes_on_from(make_trainer, tmp_path):
    path = tmp_path / "a.ckpt"
    fit(make_trainer, per_step(), 4, [SaveAt(3, path)])
    saved = torch.load(path, weights_only=True)
    averaged = saved["callbacks"]["WeightAverage"]["average"]
    weight = "3.weight"
    assert torch.equal(saved["state_dict"][f"net.{weight}"], averaged[weight])
    assert not torch.equal(saved[TRAINED][weight], averaged[weight])
    # One copy in memory and in the file, not two.
    assert saved["state_dict"][f"net.{weight}"].data_ptr() == averaged[weight].data_ptr()


def test_training_goes_on_as_without_an_average(make_trainer, tmp_path):
    """The average is shown to the validation of each epoch, and taken away again."""
    path = tmp_path / "a.ckpt"
    fit(make_trainer, per_step(), 4, [SaveAt(3, path)])
    plain = Classifier(network(), partial(SGD, lr=0.05, momentum=0.9), seed=0)
    make_trainer(max_epochs=4, callbacks=[per_step()]).fit(plain, data())
    trained = torch.load(path, weights_only=True)[TRAINED]
    assert all(torch.equal(trained[key], value) for key, value in plain.net.state_dict().items())


def test_checkpoints_of_other_settings_are_refused(make_trainer, tmp_path):
    with_it, without = tmp_path / "with.ckpt", tmp_path / "without.ckpt"
    fit(make_trainer, per_step(), 1, [SaveAt(0, with_it)])
    module = Classifier(network(), partial(SGD, lr=0.05), seed=0)
    plain = make_trainer(max_epochs=1, callbacks=[per_step()])
    plain.fit(module, data())
    plain.save_checkpoint(without)
    with pytest.raises(CheckpointError, match=r"resume with training\.ema=null"):
        fit(make_trainer, per_step(), 2, ckpt_path=without)
    with pytest.raises(CheckpointError, match=r"resume with the training\.ema of that run"):
        make_trainer(max_epochs=2, callbacks=[per_step()]).fit(module, data(), ckpt_path=with_it)


def test_the_dense_snapshot_is_the_average(make_trainer, tmp_path):
    from safetensors.torch import load_file

    pruning = per_step()
    average = WeightAverage(0.8, pruning)
    seen = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if pruning.phase_at(trainer.global_step) is Phase.PRUNE and not seen:
                seen.update({k: v.clone() for k, v in average.average.items()})

    snapshot = Snapshot(tmp_path / "dense.safetensors", pruning, Phase.PRUNE, average.state_of)
    module = Classifier(network(), partial(SGD, lr=0.05), seed=0)
    callbacks = [snapshot, pruning, average, Look()]
    make_trainer(max_epochs=4, callbacks=callbacks).fit(module, data())
    for key, value in load_file(tmp_path / "dense.safetensors").items():
        assert torch.equal(value, seen[key]), key
