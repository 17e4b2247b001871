"""The phases and the ramp, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspruner.errors import ConfigError
from crosspruner.pruning.schedule import Phase, PruningSchedule


def test_three_phases_of_a_hundred_steps():
    schedule = PruningSchedule(2, 4, 4, warmup=0.0, hold=0.5, relax=0.4, relax_until=0.5)
    assert schedule.boundaries(100) == (20, 60)
    assert schedule.at(19, 100).phase is Phase.DENSE
    assert schedule.at(20, 100).phase is Phase.PRUNE
    assert schedule.at(20, 100).ramp == 0.0
    assert schedule.at(30, 100).ramp == pytest.approx(1 - 0.5**3)  # half of the 20 ramping steps
    assert schedule.at(40, 100).ramp == 1.0  # held from here on
    assert schedule.at(20, 100).relax == pytest.approx(0.4)
    assert schedule.at(30, 100).relax == pytest.approx(0.2)
    assert schedule.at(40, 100).relax == 0.0
    assert schedule.at(60, 100) == schedule.at(100, 100)
    assert schedule.at(60, 100).phase is Phase.FINETUNE


def test_nothing_goes_while_it_only_observes():
    schedule = PruningSchedule(0, 1, 0, warmup=0.5, hold=0.0)
    assert schedule.at(50, 100).ramp == 0.0
    assert schedule.at(75, 100).ramp == pytest.approx(1 - 0.5**3)


@given(
    st.floats(0, 10), st.floats(0.1, 10), st.floats(0, 10), st.integers(1, 500), st.floats(0, 0.9)
)
def test_every_length_of_run_reaches_the_target(dense, prune, finetune, steps, warmup):
    schedule = PruningSchedule(dense, prune, finetune, warmup=warmup, hold=0.05)
    ramp = [schedule.at(step, steps).ramp for step in range(steps + 1)]
    assert ramp == sorted(ramp)
    assert schedule.at(steps, steps).phase is Phase.FINETUNE
    start, stop = schedule.boundaries(steps)
    assert 0 <= start < stop <= max(steps, 1)


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"prune_epochs": -1}, "each must be 0 or more"),
        ({"dense_epochs": -1}, "dense_epochs=-1"),
        ({"warmup": 0.6, "hold": 0.5}, "below 1 together"),
        ({"relax": -0.1}, "relax=-0.1"),
        ({"relax_until": 0}, "relax_until=0"),
    ],
)
def test_values_out_of_range_are_refused(given_values, message):
    with pytest.raises(ConfigError, match=message):
        PruningSchedule(**given_values)
