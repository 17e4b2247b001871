"""LayerwisePruning in real fits of a tiny network: at once, exact, frozen, resumed bit for bit."""

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from crosspruner.errors import BudgetError, ConfigError
from crosspruner.pruning.layerwise_callback import LayerwisePruning
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.pruning.snapshot import Snapshot

from .test_callback import SaveAt, Shows, batches, fit, pytestmark  # noqa: F401


def pruning(**given):
    values = {
        "crossbar": "16x8",
        "mapping": "folded",
        "ratio": 0.4,
        "schedule": PruningSchedule(dense_epochs=1, finetune_epochs=3),
        "settings": LayerwiseSettings(solver="magnitude"),
        "calibration_images": 24,
        "input_shape": (2, 4, 4),
    }
    return LayerwisePruning(**{**values, **given})


class Watch(pl.Callback):
    """Notes the crossbars left after each step."""

    def __init__(self, callback):
        self.callback, self.left = callback, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.left.append(self.callback.compute_crossbars)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("reorder", ["none", "importance", "tetris"])
def test_it_prunes_once_after_the_dense_epochs(grain, reorder):
    settings = LayerwiseSettings(solver="lgd_rpp", reorder=reorder)
    callback = pruning(grain=grain, settings=settings)
    watch = Watch(callback)
    _, module = fit(callback, extra=[watch])
    dense = callback.dense_plan.compute_crossbars
    steps = len(batches())
    assert set(watch.left[:steps]) == {dense}
    assert len(set(watch.left[steps:])) == 1
    assert callback.plan.compute_crossbars == watch.left[-1]
    smallest = min(layout.crossbars_per_block for layout in callback.layouts.values())
    assert abs(watch.left[-1] - 0.6 * dense) <= smallest
    for name, layer in callback.layers.items():
        weight = module.get_submodule(name).weight
        kept = layer.kept.expand_as(weight)
        assert not weight[~kept].any()
        assert bool(weight[kept].any())
        assert (callback.plan.layer(name).input_order is not None) == (reorder != "none")


@pytest.mark.parametrize("ends", [{}, {"max_steps": 10}])  # in mid-epoch
def test_what_is_shown_is_so_when_masks_freeze_in_mid_epoch(ends):
    callback = pruning(schedule=PruningSchedule(dense_epochs=1.5, finetune_epochs=2.5))
    watch = Shows(callback)
    trainer, _ = fit(callback, extra=[watch], **ends)
    assert watch.shown == [pytest.approx(so) for so in watch.so]
    assert watch.so[0]["prune/ratio"] == 0.0
    assert trainer.callback_metrics["prune/ratio"].item() == pytest.approx(callback.saved)
    assert callback.saved > 0.3


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("reorder", ["none", "importance", "best"])
def test_a_resumed_run_ends_alike(tmp_path, epoch, reorder):
    path = tmp_path / "last.ckpt"
    settings = LayerwiseSettings(solver="magnitude", reorder=reorder)
    straight = pruning(settings=settings)
    _, expected = fit(straight, extra=[SaveAt(epoch, path)])
    resumed = pruning(settings=settings)
    _, module = fit(resumed, ckpt_path=path)
    for name, mask in straight.masks.items():
        assert torch.equal(resumed.masks[name], mask)
    assert resumed.plan.to_dict() == straight.plan.to_dict()
    for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_resumed_run_keeps_the_dense_network_even_if_it_is_finished(tmp_path, epoch):
    kept = []
    for folder, ckpt_path in (("first", None), ("resumed", tmp_path / "first" / "last.ckpt")):
        callback = pruning()
        dense = Snapshot(tmp_path / folder / "dense.safetensors", callback, Phase.PRUNE)
        saver = SaveAt(epoch, tmp_path / folder / "last.ckpt")
        fit(callback, before=[dense], extra=[saver], ckpt_path=ckpt_path)
        kept.append(load_file(dense.path))
    assert all(torch.equal(kept[1][key], value) for key, value in kept[0].items())


def test_without_any_epoch_it_prunes_when_fitting_ends(tmp_path):
    callback = pruning(schedule=PruningSchedule(finetune_epochs=0))
    dense = Snapshot(tmp_path / "dense.safetensors", callback, Phase.PRUNE)
    pruned = Snapshot(tmp_path / "pruned.safetensors", callback, Phase.FINETUNE)
    fit(callback, before=[dense], extra=[pruned], epochs=0)
    assert callback.frozen
    assert callback.pruned_at_the_end
    assert callback.plan.compute_crossbars < callback.dense_plan.compute_crossbars
    before, after = load_file(dense.path), load_file(pruned.path)
    for name, layer in callback.layers.items():
        kept = layer.kept.expand_as(layer.weight)
        assert not layer.weight[~kept].any()
        assert bool(before[f"{name}.weight"][~kept].any())
        assert torch.equal(after[f"{name}.weight"], layer.weight)


def test_calibration_of_ones_own_and_a_ratio_of_zero():
    seen = []

    def images():
        for batch in batches():
            seen.append(len(batch[0]))
            yield batch

    fit(pruning(calibration=images()))
    assert sum(seen) == 48
    untouched = pruning(ratio=0.0)
    fit(untouched)
    assert untouched.compute_crossbars == untouched.dense_plan.compute_crossbars
    assert not untouched.frozen


class Data(pl.LightningDataModule):
    """float32 images, also to judge a network on."""

    def train_dataloader(self):
        return batches()

    def val_dataloader(self):
        return batches()


@pytest.mark.filterwarnings("ignore:.*have no `validation_step`. Skipping val loop")
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_sensitivity_judges_a_network_of_any_precision(precision):
    callback = pruning(budget="sensitivity")
    fit(callback, precision=precision, data=Data(), epochs=2)
    assert callback.frozen
    assert callback.plan.compute_crossbars < callback.dense_plan.compute_crossbars


def test_the_schedule_has_no_prune_phase():
    schedule = pruning().schedule
    assert schedule.epochs == 4
    assert schedule.boundaries(24) == (6, 6)
    assert [schedule.at(step, 24).phase for step in (5, 6)] == [Phase.DENSE, Phase.FINETUNE]


def test_what_cannot_be_done_is_refused_before_training():
    with pytest.raises(ConfigError, match="calibration_images=0"):
        pruning(calibration_images=0)
    with pytest.raises(BudgetError, match="largest feasible ratio"):
        fit(pruning(ratio=0.97))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"damping": 0.0}, r"procedure\.damping=0: give a share of the mean input energy above 0"),
        ({"positions": 0}, r"procedure\.positions=0: give output positions per image"),
    ],
)
def test_settings_out_of_range_are_refused_before_training(given, said):
    with pytest.raises(ConfigError, match=said):
        LayerwiseSettings(**given)
