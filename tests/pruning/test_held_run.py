"""HeldRun: what a run has pruned is trained further under the same masks."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosspruner.errors import ConfigError, ModelError, RunFolderError
from crosspruner.pruning.held_run import HeldRun, dense_weights
from crosspruner.pruning.layerwise_callback import LayerwisePruning
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.saving import save_pruned
from crosspruner.pruning.schedule import PruningSchedule

from .test_callback import fit, pytestmark  # noqa: F401


def settings(**given):
    values = {
        "crossbar": "16x8",
        "mapping": "folded",
        "ratio": 0.4,
        "schedule": PruningSchedule(dense_epochs=0, finetune_epochs=2),
        "settings": LayerwiseSettings(solver="magnitude", reorder="tetris"),
        "calibration_images": 24,
        "input_shape": (2, 4, 4),
    }
    return {**values, **given}


@pytest.fixture(scope="module", params=["column", "crossbar"])
def run(request, tmp_path_factory):
    """(grain, folder of a run that pruned, its callback, its network)"""
    folder = tmp_path_factory.mktemp("run")
    callback = LayerwisePruning(**settings(grain=request.param))
    _, module = fit(callback, epochs=1)
    save_pruned(folder / "pruned", module, callback.plan, callback.masks)
    return request.param, folder, callback, module


def held(run, **given):
    return HeldRun(run[1], **settings(grain=run[0], ratio=run[2].saved, **given))


def test_it_starts_from_the_pruned_network_and_keeps_its_masks(run):
    _, _, first, pruned = run
    callback = held(run)
    _, module = fit(callback, epochs=0)  # no step: pruned as fitting ends
    assert callback.frozen
    for name, value in pruned.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)
    _, module = fit(callback := held(run), epochs=2)
    assert callback.plan.compute_crossbars == first.plan.compute_crossbars
    for name, mask in first.masks.items():
        assert torch.equal(callback.masks[name], mask)
        order = first.plan.layer(name).input_order
        assert torch.equal(callback.plan.layer(name).input_order, order)
        weight = module.get_submodule(name).weight
        kept = callback.layers[name].kept.expand_as(weight)
        assert not weight[~kept].any()
        assert not torch.equal(weight, pruned.get_submodule(name).weight)  # and it was trained


def test_what_differs_from_the_run_is_named(run):
    grain = run[0]
    for given, message in (
        ({"crossbar": "16x16"}, "crossbar="),
        ({"mapping": "semifolded"}, "mapping="),
        ({"grain": {"column": "crossbar", "crossbar": "column"}[grain]}, "grain="),
        ({"ratio": 0.2}, f"type ratio={run[2].saved:.3f}"),
    ):
        values = settings(**{"grain": grain, "ratio": run[2].saved, **given})
        with pytest.raises(ConfigError, match=message):
            fit(HeldRun(run[1], **values), epochs=1)


def test_dense_epochs_make_no_sense(run):
    with pytest.raises(ConfigError, match="schedule=from_dense"):
        held(run, schedule=PruningSchedule(dense_epochs=1))


def test_another_network_is_refused(run, tmp_path):
    folder = tmp_path / "pruned"
    save_pruned(folder, run[3], run[2].plan, run[2].masks)
    weights = load_file(folder / "weights.safetensors")
    del weights["body.0.bias"]
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"body.0.bias is absent there and \(8,\) here"):
        fit(held((run[0], tmp_path, *run[2:])), epochs=1)


def test_a_folder_without_a_pruned_network_is_refused(run, tmp_path):
    with pytest.raises(RunFolderError, match=r"has no pruned/mapping.json"):
        held((run[0], tmp_path, *run[2:]))
    with pytest.raises(RunFolderError, match=r"has no checkpoints/dense.safetensors"):
        dense_weights(tmp_path)
