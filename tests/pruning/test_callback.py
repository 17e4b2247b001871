"""CrossbarPruning in real fits of a tiny network: budgets, zeros, resume."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from crosspruner.errors import BudgetError, CheckpointError, ConfigError
from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.pruning.step_settings import STEP_SOLVERS, StepSettings

pytestmark = [
    # Lightning's own notices on a run this small
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*`trainer.fit` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty"),
]


class Tiny(pl.LightningModule):
    """A user's own module: nothing of ours in it."""

    def __init__(self, momentum=0.9):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1, groups=2),
            nn.Flatten(),
            nn.Linear(6 * 16, 12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )
        self.momentum = momentum

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(
            self.parameters(), lr=0.05, momentum=self.momentum, weight_decay=1e-2
        )


def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, 2, 4, 4, generator=generator)
    return DataLoader(TensorDataset(images, images.mean(dim=(1, 2, 3)).gt(0).long()), batch_size=8)


def pruning(**given):
    values = {
        "crossbar": "16x8",
        "mapping": "folded",
        "ratio": 0.5,
        "schedule": PruningSchedule(1, 2, 1, warmup=0.2, hold=0.1),
        "settings": StepSettings(moment_every=1, refresh_every=2, moment_rows=32),
        "input_shape": (2, 4, 4),
    }
    return CrossbarPruning(**{**values, **given})


def fit(
    callback,
    ckpt_path=None,
    precision="32-true",
    extra=(),
    before=(),
    epochs=4,
    data=None,
    **given,
):
    pl.seed_everything(0, verbose=False)
    module = Tiny()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*before, callback, *extra],
        **given,
    )
    trainer.fit(module, data or batches(), ckpt_path=ckpt_path)
    return trainer, module


@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("solver", STEP_SOLVERS)
def test_the_budget_is_met_and_what_is_pruned_is_exactly_zero(grain, solver):
    settings = StepSettings(name=solver, moment_every=1, refresh_every=2, moment_rows=32)
    callback = pruning(grain=grain, settings=settings)
    _, module = fit(callback)
    assert callback.frozen
    plan = callback.plan
    assert plan.compute_crossbars == callback.compute_crossbars
    smallest = min(layout.crossbars_per_block for layout in callback.layouts.values())
    target = 0.5 * callback.dense_plan.compute_crossbars
    assert abs(plan.compute_crossbars - target) <= smallest / 2
    for name, state in callback.states.items():
        assert callback.layouts[name].blocks_of(state.layer.mask) == callback.blocks[name]
        weight = module.get_submodule(name).weight
        assert bool((weight[~state.layer.kept.expand_as(weight)] == 0).all())
        assert bool((weight[state.layer.kept.expand_as(weight)] != 0).any())


def test_mixed_precision_leaves_no_pruned_weight():
    callback = pruning()
    fit(callback, precision="bf16-mixed")
    for state in callback.states.values():
        assert (
            int((state.layer.weight[~state.layer.kept.expand_as(state.layer.weight)] != 0).sum())
            == 0
        )


def test_state_dict_keys_never_change():
    _, module = fit(pruning())
    assert list(module.state_dict()) == list(Tiny().state_dict())


def test_a_ratio_of_zero_trains_as_if_it_were_not_there():
    _, with_it = fit(pruning(ratio=0.0))
    pl.seed_everything(0, verbose=False)
    _, without = fit(pl.Callback())
    for ours, theirs in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class SaveAt(pl.Callback):
    """Saves a checkpoint at the end of an epoch, after every other callback."""

    def __init__(self, epoch, path):
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_resume_keeps_masks(tmp_path, epoch, grain):
    path = tmp_path / "last.ckpt"
    straight = pruning(grain=grain)
    _, expected = fit(straight, extra=[SaveAt(epoch, path)])
    resumed = pruning(grain=grain)
    _, module = fit(resumed, ckpt_path=path)
    for name, mask in straight.masks.items():
        assert torch.equal(resumed.masks[name], mask)
    for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpoints_load_with_weights_only(tmp_path):
    path = tmp_path / "last.ckpt"
    fit(pruning(), extra=[SaveAt(1, path)])
    assert "callbacks" in torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grain": "column"}, "was pruned at grain=crossbar"),
        ({"crossbar": "32x8"}, "resume with the model, crossbar, mapping and grain of that run"),
        ({"ratio": 0.4}, "resume with ratio=0.5"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, given, message):
    path = tmp_path / "last.ckpt"
    fit(pruning(grain="crossbar"), extra=[SaveAt(1, path)])
    with pytest.raises(CheckpointError, match=message):
        fit(pruning(**{"grain": "crossbar", **given}), ckpt_path=path)


def test_another_network_starts_anew_and_the_same_one_keeps_its_masks():
    callback = pruning()
    fit(callback)
    trainer, module = fit(callback)
    assert callback.frozen
    assert callback.compute_crossbars == callback.plan.compute_crossbars
    masks = callback.masks
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, batches())
    for name, mask in callback.masks.items():
        assert torch.equal(mask, masks[name])
        weight = module.get_submodule(name).weight
        assert bool((weight[~callback.states[name].layer.kept.expand_as(weight)] == 0).all())


def test_arguments_are_checked_before_training():
    with pytest.raises(ConfigError, match=r"ratio=1\.5"):
        pruning(ratio=1.5)
    with pytest.raises(ConfigError, match="example_input_array"):
        fit(pruning(input_shape=None))
    with pytest.raises(BudgetError, match="largest feasible ratio"):
        fit(pruning(ratio=0.97))
    with pytest.raises(ConfigError, match="matches no layer"):
        fit(pruning(exclude=["head.*"]))


def test_churn_falls_silent_before_the_masks_freeze():
    churn = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            churn.append((trainer.global_step, trainer.callback_metrics["prune/mask_churn"].item()))

    callback = pruning()
    fit(callback, extra=[Watch()])
    start, stop = callback.schedule.boundaries(24)
    assert all(value == 0 for step, value in churn if step <= start or step > stop)
    assert any(value > 0 for step, value in churn if start < step <= stop)


class Shows(pl.Callback):
    """What Lightning shows after each batch beside what is so."""

    def __init__(self, callback):
        self.callback, self.shown, self.so, self.epochs = callback, [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        so = self.callback.metrics(trainer.global_step)
        self.so.append(so)
        self.shown.append({name: trainer.callback_metrics[name].item() for name in so})

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(trainer.callback_metrics["crossbars/compute"].item())


@pytest.mark.parametrize("prune_epochs", [2, 1.5])  # 1.5: the masks freeze in mid-epoch
def test_what_is_shown_is_what_is_so_after_every_step(prune_epochs):
    callback = pruning(schedule=PruningSchedule(1, prune_epochs, 3 - prune_epochs))
    watch = Shows(callback)
    fit(callback, extra=[watch])
    assert watch.shown == [pytest.approx(so) for so in watch.so]
    assert {so["prune/phase"] for so in watch.so} == {0.0, 1.0, 2.0}
    assert watch.epochs == [watch.so[step]["crossbars/compute"] for step in (5, 11, 17, 23)]


def test_what_did_not_change_is_not_logged_again(monkeypatch):
    logged = []
    before = Tiny.log_dict
    monkeypatch.setattr(
        Tiny, "log_dict", lambda module, *a, **k: (logged.append(a[0]), before(module, *a, **k))
    )
    fit(pruning(ratio=0.0))
    relaxed = {values["prune/relax"] for values in logged}
    assert len(logged) == 4 + len(relaxed) - 1  # once an epoch, and as the relaxation falls


def test_a_short_schedule_draws_enough_patches_before_it_removes():
    settings = StepSettings(moment_every=1, refresh_every=2, moment_rows=5)
    callback = pruning(settings=settings)
    seen = []

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if callback.phase_at(trainer.global_step) is Phase.PRUNE:
                step = trainer.global_step
                seen.append({n: callback._rows(s, step) for n, s in callback.states.items()})

    fit(callback, extra=[Count()])
    first, last = seen[0], seen[-1]
    assert set(last.values()) == {5}
    warm = sum(rows != last for rows in seen)
    for name, layout in callback.layouts.items():
        module = callback.states[name].layer.module
        side = layout.input_groups * layout.kin * module.weight[0, 0].numel()
        assert first[name] * warm >= 8 * side
        assert first[name] * warm < 8 * side + warm
