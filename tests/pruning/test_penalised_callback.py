"""PenalisedPruning in real fits of a tiny network: exact budget, what was chosen is what is cut."""

import pytest

from crosspruner.errors import ConfigError
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.penalised_callback import PenalisedPruning
from crosspruner.pruning.schedule import PruningSchedule

from .test_callback import SaveAt, batches, fit, pytestmark  # noqa: F401


def penalised(made=PenalisedPruning, **given):
    values = {
        "mapping": "folded",
        "ratio": 0.5,
        "schedule": PruningSchedule(0, 2, 1),
        "settings": LayerwiseSettings("magnitude"),
        "calibration": [images for images, _ in batches()],
        "input_shape": (2, 4, 4),
    }
    return made("16x8", **{**values, **given})


class Norms(PenalisedPruning):
    """Notes the norms of removed and of kept groups just before the cut."""

    def cut(self, trainer, pl_module):
        chosen = self.chosen
        self.seen = {True: 0.0, False: 0.0}
        for name, layer in self.layers.items():
            squares = layer.layout.sum_by_group(layer.weight.detach().square())
            for kept in (True, False):
                self.seen[kept] += float(squares[chosen[name] == kept].sum())
        super().cut(trainer, pl_module)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("penalise", ["removed", "all"])
def test_the_budget_is_exact_and_zeros_stay(penalise, grain):
    callback = penalised(penalise=penalise, grain=grain)
    _, module = fit(callback, epochs=3)
    assert callback.frozen
    smallest = min(layout.crossbars_per_block for layout in callback.layouts.values())
    target = 0.5 * callback.dense_plan.compute_crossbars
    assert abs(callback.plan.compute_crossbars - target) <= smallest / 2
    for name, layer in callback.layers.items():
        weight = module.get_submodule(name).weight
        assert bool((weight[~layer.kept.expand_as(weight)] == 0).all())
        assert callback.layouts[name].blocks_of(layer.mask) == callback.blocks[name]


def test_only_the_groups_chosen_for_removal_shrink():
    values = {"schedule": PruningSchedule(0, 3, 1)}
    callback = penalised(made=Norms, **values)
    fit(callback, epochs=4)
    assert callback.seen[False] < 0.001 * callback.seen[True]
    for name, mask in callback.masks.items():
        assert bool((mask == callback.chosen[name]).all())


def test_the_mask_may_come_from_any_solver_and_order():
    settings = LayerwiseSettings("obs_group", reorder="importance")
    callback = penalised(settings=settings, budget="global")
    fit(callback, epochs=3)
    target = 0.5 * callback.dense_plan.compute_crossbars
    assert abs(callback.compute_crossbars - target) <= 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"penalise": "some"}, "penalise='some'"),
        ({"strength": 0.0}, r"procedure\.strength"),
        ({"schedule": PruningSchedule(1, 0, 1)}, "prune_epochs=0"),
    ],
)
def test_what_cannot_be_done_is_said(given, message):
    with pytest.raises(ConfigError, match=message):
        penalised(**given)


def test_state_survives_a_stop(tmp_path):
    settings = LayerwiseSettings("magnitude", reorder="importance")
    straight = penalised(settings=settings)
    fit(straight, epochs=3)
    half = penalised(settings=settings)
    fit(half, epochs=3, extra=[SaveAt(0, tmp_path / "half.ckpt")])
    again = penalised(settings=settings)
    fit(again, ckpt_path=tmp_path / "half.ckpt", epochs=3)
    for name, mask in straight.masks.items():
        assert bool((mask == again.masks[name]).all())
        assert again.layers[name].layout.input_order is not None
