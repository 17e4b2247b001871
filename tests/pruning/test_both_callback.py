"""BothPruning in real fits: the exact budget, the first part at once, resume."""

import pytest
import torch

from crosspruner.errors import ConfigError
from crosspruner.pruning.both_callback import BothPruning, in_proportion
from crosspruner.pruning.schedule import PruningSchedule
from crosspruner.pruning.step_settings import StepSettings

from .test_callback import SaveAt, fit, pytestmark  # noqa: F401


def both(made=BothPruning, **given):
    values = {
        "mapping": "folded",
        "ratio": 0.5,
        "schedule": PruningSchedule(0, 2, 1),
        "settings": StepSettings(moment_every=1, refresh_every=2, moment_rows=32),
        "input_shape": (2, 4, 4),
        "calibration_images": 24,
    }
    return made("16x8", **{**values, **given})


def test_proportions_by_hand():
    gone, blocks = torch.tensor([10, 0, 5]), torch.tensor([100, 100, 10])
    unit, most = torch.ones(3, dtype=torch.int64), torch.tensor([90, 90, 6])
    # shares 11, 1, 5.1: with 30 in all the last gives its 6, the others 22 and 2
    found = in_proportion(gone, blocks, unit, most, 30)
    torch.testing.assert_close(found, torch.tensor([22.0, 2.0, 6.0]).double())


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_the_budget_is_exact_and_most_goes_at_once(grain):
    seen = []

    class Noting(BothPruning):
        def remove_first(self, trainer, pl_module):
            super().remove_first(trainer, pl_module)
            seen.append(self.saved)

    callback = both(Noting, grain=grain)
    fit(callback, epochs=3)
    assert len(seen) == 1
    assert 0.25 < seen[0] < 0.45  # 0.7 of 0.5
    smallest = min(layout.crossbars_per_block for layout in callback.layouts.values())
    target = 0.5 * callback.dense_plan.compute_crossbars
    assert abs(callback.plan.compute_crossbars - target) <= smallest / 2
    assert callback.frozen


def test_a_stopped_run_goes_on_alike(tmp_path):
    straight = both()
    fit(straight, epochs=3, extra=[SaveAt(0, tmp_path / "half.ckpt")])
    again = both()
    fit(again, ckpt_path=tmp_path / "half.ckpt", epochs=3)
    assert again.blocks == straight.blocks
    for name, mask in straight.masks.items():
        assert bool((mask == again.masks[name]).all())


@pytest.mark.parametrize("given", [{"first": 1.0}, {"calibration_images": 0}])
def test_what_is_out_of_range_is_said(given):
    with pytest.raises(ConfigError, match=r"procedure\.first"):
        both(**given)
