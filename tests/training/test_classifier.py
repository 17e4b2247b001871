from functools import partial

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LinearLR, OneCycleLR

from crosspruner.errors import ConfigError
from crosspruner.training import Classifier, build_model
from crosspruner.training.data import SyntheticData


def data(**settings) -> SyntheticData:
    return SyntheticData(**{"num_images": 90, "num_classes": 3, "image_size": 8, **settings})


def net() -> nn.Module:
    torch.manual_seed(0)
    return build_model("vgg8", 3, image_size=(8, 8), width=0.0625)


sgd = partial(SGD, lr=0.01, momentum=0.9, weight_decay=0.1)


class Recorder(nn.Module):
    """Logits that do not depend on the images: every image is called class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))

    def forward(self, x):
        return self.logits.expand(len(x), 3) + 0 * x.mean()


def test_evaluation_metrics_are_means_over_images(make_trainer):
    # 18 test images in batches of 7, 7 and 4: a mean over batches would differ
    split = data(batch_size=7)
    (logged,) = make_trainer().test(Classifier(Recorder(), sgd), split, verbose=False)
    labels = split.splits.test.labels
    expected = cross_entropy(torch.tensor([1.0, 0.0, -1.0]).expand(18, 3), labels)
    assert logged["test/loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert logged["test/acc"] == pytest.approx((labels == 0).float().mean().item(), rel=1e-6)


def test_fit_logs_training_and_validation_and_learns(make_trainer):
    trainer = make_trainer(max_epochs=6)
    model = Classifier(net(), partial(SGD, lr=0.05, momentum=0.9))
    trainer.fit(model, data(num_images=300, batch_size=20, crop_padding=1))
    assert set(trainer.callback_metrics) == {"train/loss", "train/acc", "val/loss", "val/acc"}
    assert trainer.callback_metrics["val/acc"] > 0.9


class Recounts(Callback):
    """Counts hits of training beside the metric: (shown, counted) of each epoch."""

    def __init__(self):
        self.hits, self.found = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.hits.append(batch[1] == pl_module.net.logits.argmax().item())

    def on_train_epoch_end(self, trainer, pl_module):
        shown = trainer.callback_metrics["train/acc"].item()
        self.found.append((shown, torch.cat(self.hits).float().mean().item()))
        self.hits.clear()


class Forgetful(Classifier):
    """A user's subclass whose hooks do not call ours."""

    def on_train_epoch_start(self):
        pass


@pytest.mark.parametrize("kind", [Classifier, Forgetful])
def test_each_epoch_has_the_mean_over_its_own_images(make_trainer, kind):
    count = Recounts()
    trainer = make_trainer(max_epochs=4, callbacks=[count], limit_train_batches=4)
    model = kind(Recorder(), partial(SGD, lr=3.0))  # so that it says another class each epoch
    trainer.fit(model, data(num_images=300, batch_size=20))
    shown, counted = zip(*count.found, strict=True)
    assert shown == pytest.approx(counted)
    assert len(set(counted)) > 1


def test_a_module_that_is_fitted_again_shows_its_metrics(make_trainer, tmp_path):
    split, path = data(num_images=300, batch_size=20), tmp_path / "mid.ckpt"
    model = Classifier(Recorder(), partial(SGD, lr=0.01))
    trainer = make_trainer(max_epochs=3, max_steps=15)
    trainer.fit(model, split)
    trainer.save_checkpoint(path)  # in mid-epoch
    trainer = make_trainer(max_epochs=3)
    trainer.fit(model, split, ckpt_path=path)
    assert {"train/loss", "train/acc", "val/acc"} <= set(trainer.callback_metrics)


def test_label_smoothing_is_for_training_only(make_trainer):
    trainer = make_trainer(max_epochs=1, limit_train_batches=1)
    model = Classifier(Recorder(), partial(SGD, lr=0.0), label_smoothing=0.5)
    split = data(batch_size=9, augment=False)
    trainer.fit(model, split)
    logits = torch.tensor([1.0, 0.0, -1.0])
    _, labels = next(iter(split.train_dataloader()))
    smoothed = cross_entropy(logits.expand(9, 3), labels, label_smoothing=0.5)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(smoothed.item())
    labels = split.splits.val.labels
    plain = cross_entropy(logits.expand(len(labels), 3), labels)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(plain.item())


def test_a_loss_that_is_not_a_number_shows(make_trainer):
    broken = Recorder()
    nn.init.constant_(broken.logits, float("nan"))
    (logged,) = make_trainer().test(Classifier(broken, sgd), data(), verbose=False)
    assert torch.tensor(logged["test/loss"]).isnan()


def test_weight_decay_spares_biases_and_norms():
    model = Classifier(net(), sgd)
    decayed, spared = model.make_optimizer(model.parameter_groups()).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.net.named_parameters()}
    weighted = [m for m in model.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {id(p) for p in decayed["params"]} == {id(m.weight) for m in weighted}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_weight_decay_of_everything_is_a_switch():
    model = Classifier(net(), sgd, decay_norm_and_bias=True)
    (group,) = model.make_optimizer(model.parameter_groups()).param_groups
    assert len(group["params"]) == len(list(model.net.parameters()))
    assert group["weight_decay"] == 0.1


def test_frozen_parameters_are_left_out():
    frozen = net()
    frozen.features.requires_grad_(False)
    params = [p for g in Classifier(frozen, sgd).parameter_groups() for p in g["params"]]
    assert {id(p) for p in params} == {id(p) for p in frozen.classifier.parameters()}


def test_scheduler_is_told_the_steps_and_stepped_after_each(make_trainer):
    schedule = partial(OneCycleLR, max_lr=0.1, pct_start=0.5, cycle_momentum=False)
    model = Classifier(net(), partial(SGD, lr=0.1), schedule)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, data(batch_size=8))  # 64 training images: 8 steps an epoch
    (config,) = trainer.lr_scheduler_configs
    assert config.scheduler.total_steps == 16
    assert config.scheduler.last_epoch == 16
    assert config.interval == "step"


def test_without_scheduler_the_rate_stays(make_trainer):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(Classifier(net(), partial(AdamW, lr=0.003)), data())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.003


def test_a_schedule_needs_an_end(make_trainer):
    def halve(optimizer, total_steps):
        return LinearLR(optimizer, total_iters=total_steps)

    trainer = make_trainer(max_epochs=-1)
    with pytest.raises(ConfigError, match=r"needs an end: set trainer.max_epochs or trainer.max_s"):
        trainer.fit(Classifier(net(), sgd, halve), data())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_label_smoothing_out_of_range(smoothing):
    with pytest.raises(ConfigError, match=r"label_smoothing=\S+ given: it must be in \[0, 1\)"):
        Classifier(net(), sgd, label_smoothing=smoothing)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_changes_no_result(channels_last):
    model = Classifier(net(), sgd, channels_last=channels_last).eval()
    x = torch.rand(2, 3, 8, 8)
    assert model.net.features[0].weight.is_contiguous(memory_format=model.memory_format)
    assert torch.allclose(model(x), net().eval()(x), atol=1e-6)


@pytest.mark.slow
def test_a_compiled_network_trains_alike_and_stays_the_plain_one(make_trainer):
    runs = []
    for compiled in (False, True):
        model = Classifier(net(), sgd, seed=0, compile=compiled, compile_backend="eager")
        make_trainer(max_epochs=2).fit(model, data(batch_size=32))
        assert type(model.net) is type(net())
        assert [k for k in model.state_dict() if "orig_mod" in k] == []
        runs.append(model.net.state_dict())
    assert all(torch.equal(runs[0][key], value) for key, value in runs[1].items())


def test_an_unknown_backend_is_named():
    with pytest.raises(ConfigError, match=r"compile_backend=nope given: .*inductor"):
        Classifier(net(), sgd, compile=True, compile_backend="nope")


def test_checkpoint_holds_plain_values_and_the_networks_keys(make_trainer, tmp_path):
    model = Classifier(net(), sgd, partial(OneCycleLR, max_lr=0.1), seed=0)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    keys = [f"net.{key}" for key in net().state_dict()]
    assert list(checkpoint["state_dict"]) == keys


@pytest.mark.parametrize(("seed", "alike"), [(3, True), (None, False)])
def test_seed_fixes_dropout_per_epoch(make_trainer, seed, alike):
    class Noise(Recorder):
        def __init__(self):
            super().__init__()
            self.draws = []

        def forward(self, x):
            if self.training:
                self.draws.append(torch.rand(1).item())
            return super().forward(x)

    runs = []
    for start in (1, 2):
        torch.manual_seed(start)
        noise = Noise()
        make_trainer(max_epochs=2).fit(Classifier(noise, sgd, seed=seed), data(batch_size=32))
        runs.append(noise.draws)
    assert (runs[0] == runs[1]) == alike
    assert len(set(runs[0])) == len(runs[0]) == 4
