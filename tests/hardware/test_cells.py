"""Weights in cells, one effect at a time: by hand on 2x2 weights, then the statistics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar
from crosspruner.hardware.cell_map import cell_number
from crosspruner.hardware.cells import Stored, compensated, conductances, store, stuck
from crosspruner.hardware.device import Device
from crosspruner.hardware.draws import Effect, normal, uniform

PAIRED = Crossbar(2, 4, differential=True)
SHIFTED = Crossbar(2, 2)
WEIGHTS = torch.tensor([[1.0, -0.5], [0.25, 0.0]], dtype=torch.float64)
CELLS = cell_number(
    PAIRED, torch.zeros((), dtype=torch.int64), torch.arange(2)[:, None], torch.arange(2)
)


def on_chip(device, crossbar=PAIRED, weights=WEIGHTS, seed=0):
    scale = weights.abs().max()
    stored = store(weights, scale, device, crossbar)
    held = conductances(stored, device, seed, "layer", CELLS[: len(stored.levels)])
    return held, stored.weights(held, stored.most * device.floor)


def many(device, weight, count=40_000, crossbar=PAIRED, seed=0):
    """The same weight on many cells: what comes of it."""
    weights = torch.full((count,), weight, dtype=torch.float64)
    stored = store(weights, torch.tensor(1.0, dtype=torch.float64), device, crossbar)
    cell = torch.arange(2 * count).view(count, 2).T[: len(stored.levels)]
    held = conductances(stored, device, seed, "layer", cell)
    return held, stored.weights(held, stored.most * device.floor)


def test_cells_are_numbered_row_by_row_the_cells_of_a_weight_side_by_side():
    assert CELLS.tolist() == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


@pytest.mark.parametrize("crossbar", [PAIRED, SHIFTED])
def test_without_effects_weights_are_what_they_were(crossbar):
    assert torch.equal(on_chip(Device(), crossbar)[1], WEIGHTS)


def test_three_bits_by_hand():
    # 2^2 - 1 = 3 steps on either side: 1, -0.5, 0.25, 0 are 3, -1.5 (halves to even), 0.75, 0.
    held, weights = on_chip(Device(weight_bits=3))
    assert held.tolist() == [[[3, 0], [1, 0]], [[0, 2], [0, 0]]]
    assert weights.tolist() == [[1, pytest.approx(-2 / 3)], [pytest.approx(1 / 3), 0]]


def test_three_bits_shifted_by_hand():
    # The same, 4 levels up, on a cell of 2^3 - 1 = 7 levels.
    stored = store(WEIGHTS, WEIGHTS.max(), Device(weight_bits=3), SHIFTED)
    assert stored.levels.tolist() == [[[7, 2], [5, 4]]]
    assert stored.most == 7
    assert on_chip(Device(weight_bits=3), SHIFTED)[1].tolist() == [
        [1, pytest.approx(-2 / 3)],
        [pytest.approx(1 / 3), 0],
    ]


def test_slices_by_hand():
    # 5 bits: 15 steps; 1, -0.5, 0.25 are 15, -8 (7.5 to even), 4 = 11 11, 10 00, 01 00.
    crossbar = Crossbar(2, 12, weight_bits=5, cell_bits=2, differential=True)
    stored = store(WEIGHTS, WEIGHTS.max(), Device(weight_bits=5), crossbar)
    assert stored.worth == (1, 4, 16, -1, -4, -16)
    assert stored.levels.flatten(1).tolist() == [
        [3, 0, 0, 0],
        [3, 0, 1, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 2, 0, 0],
        [0, 0, 0, 0],
    ]


def test_off_cells_conduct_but_a_pair_cancels_it():
    # On/off 3: an off cell has half of the range between off and on.
    held, weights = on_chip(Device(on_off=3))
    assert held.tolist() == [[[1.5, 0.5], [0.75, 0.5]], [[0.5, 1.0], [0.5, 0.5]]]
    assert torch.equal(weights, WEIGHTS)


def test_lognormal_by_hand():
    theta = normal(0, "layer", Effect.LOGNORMAL, CELLS).double()
    _, weights = on_chip(Device(lognormal=0.1))
    factor = torch.where(WEIGHTS >= 0, theta[0], theta[1]).mul(0.1).exp()
    torch.testing.assert_close(weights, WEIGHTS * factor)
    # With an on/off ratio the off cell of the pair varies as well.
    _, weights = on_chip(Device(lognormal=0.1, on_off=3))
    assert weights[1, 1] == pytest.approx(
        0.5 * float((0.1 * theta[0, 1, 1]).exp() - (0.1 * theta[1, 1, 1]).exp()), rel=1e-4
    )


def test_gaussian_by_hand():
    drawn = normal(0, "layer", Effect.GAUSSIAN, CELLS).double()
    _, weights = on_chip(Device(gaussian=0.01))
    positive = torch.tensor([[1.0, 0.0], [0.25, 0.0]]) + 0.01 * drawn[0]
    negative = torch.tensor([[0.0, 0.5], [0.0, 0.0]]) + 0.01 * drawn[1]
    torch.testing.assert_close(weights, positive.clamp(min=0) - negative.clamp(min=0))


def test_drift_by_hand():
    # 100^-0.5 = 0.1 of everything; compensated, nothing.
    torch.testing.assert_close(on_chip(Device(drift=0.5, drift_time=100))[1], 0.1 * WEIGHTS)
    compensated = Device(drift=0.5, drift_time=100, drift_compensated=True)
    torch.testing.assert_close(on_chip(compensated)[1], WEIGHTS)
    assert torch.equal(on_chip(Device(drift=0.5, drift_time=1))[1], WEIGHTS)


@pytest.mark.parametrize(
    ("off", "on", "expected"),
    [(1, 0, [[0, 0], [0, 0]]), (0, 1, [[0, 0], [0, 0]])],
)
def test_a_pair_of_stuck_cells_is_zero(off, on, expected):
    assert on_chip(Device(stuck_off=off, stuck_on=on))[1].tolist() == expected


def test_all_cells_stuck_on_where_weights_are_shifted():
    assert on_chip(Device(stuck_on=1), SHIFTED)[1].tolist() == [[1, 1], [1, 1]]
    assert on_chip(Device(stuck_off=1), SHIFTED)[1].tolist() == [[-1, -1], [-1, -1]]


def test_partner_makes_up_for_a_stuck_cell_by_hand():
    # Pairs of +3: healthy; + stuck off (cannot be saved); - stuck off (nothing wrong); + stuck on
    # (- takes 7 - 3 = 4); - stuck on (+ would need 10, has 7); both stuck.
    levels = torch.tensor([[3.0] * 6, [0.0] * 6])
    fault = torch.tensor([[0, -1, 0, 1, 0, 1], [0, 0, -1, 0, 1, -1]], dtype=torch.int8)
    assert compensated(levels, fault, 7).tolist() == [[3, 3, 3, 3, 7, 3], [0, 0, 0, 4, 0, 0]]


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 0.5), st.floats(-1, 1).filter(lambda w: abs(w) > 0.01), st.integers(0, 99))
def test_lognormal_statistics(sigma, weight, seed):
    _, weights = many(Device(lognormal=sigma), weight, seed=seed)
    theta = (weights / weight).log()
    assert float(theta.mean()) == pytest.approx(0, abs=5 * sigma / math.sqrt(len(theta)))
    assert float(theta.std()) == pytest.approx(sigma, rel=0.02)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 0.1), st.integers(0, 99))
def test_gaussian_statistics(sigma, seed):
    held, _ = many(Device(gaussian=sigma), 0.6, seed=seed)
    assert float(held[0].mean()) == pytest.approx(0.6, abs=5 * sigma / 200)
    assert float(held[0].std()) == pytest.approx(sigma, rel=0.02)
    assert float(held[1].min()) == 0  # no cell conducts less than nothing


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 0.3), st.floats(0, 0.3), st.integers(0, 99))
def test_fault_rates(off, on, seed):
    device = Device(stuck_off=off, stuck_on=on)
    fault = stuck(device, seed, "layer", torch.arange(100_000))
    for share, sign in ((off, -1), (on, 1)):
        assert float((fault == sign).double().mean()) == pytest.approx(share, abs=0.01)
    held, _ = many(device, 0.6, seed=seed)
    assert set(held.flatten().tolist()) <= {0.0, 0.6, 1.0}


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 0.1), st.floats(0.001, 0.02), st.integers(0, 99))
def test_drift_statistics(mean, spread, seed):
    held, _ = many(Device(drift=mean, drift_spread=spread, drift_time=1000), 1.0, seed=seed)
    exponent = -held[0].log() / math.log(1000)
    assert float(exponent.mean()) == pytest.approx(mean, abs=5 * spread / 200)
    assert float(exponent.std()) == pytest.approx(spread, rel=0.03)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(1, 8), st.booleans(), st.integers(0, 99))
def test_quantised_weights_are_within_half_a_step(bits, cell_bits, paired, seed):
    weights = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weights = weights * 2 - 1
    crossbar = Crossbar(8, 64, bits, cell_bits, paired)
    device = Device(weight_bits=bits)
    stored = store(weights, weights.abs().max(), device, crossbar)
    assert bool(((stored.levels >= 0) & (stored.levels <= stored.most)).all())
    cell = torch.zeros_like(stored.levels, dtype=torch.int64)
    back = stored.weights(conductances(stored, device, 0, "layer", cell), 0.0)
    step = float(weights.abs().max()) / (2 ** (bits - 1) - 1)
    assert float((back - weights).abs().max()) <= step / 2 + 1e-12


def test_several_chips_at_once_are_the_chips_one_by_one():
    device = Device(lognormal=0.1, gaussian=0.02, stuck_off=0.1, stuck_on=0.1, drift_spread=0.1,
                    drift_time=10, compensate=True, on_off=10)  # fmt: skip
    stored = store(WEIGHTS, WEIGHTS.max(), device, PAIRED)
    together = conductances(stored, device, torch.tensor([3, 8]).view(2, 1, 1, 1), "a", CELLS)
    for i, seed in enumerate((3, 8)):
        assert torch.equal(together[i], conductances(stored, device, seed, "a", CELLS))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], conductances(stored, device, 3, "b", CELLS))


def test_draws_are_uniform_and_unrelated_between_neighbours_chips_and_effects():
    cell = torch.arange(200_000)
    drawn = uniform(1, "layer", Effect.FAULT, cell)
    counts = torch.histc(drawn, 20, 0, 1)
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 43.8  # chi^2, 19 degrees, p = 0.001
    others = [
        drawn.roll(1),
        uniform(2, "layer", Effect.FAULT, cell),
        uniform(1, "layer", Effect.DRIFT, cell),
        uniform(1, "layer2", Effect.FAULT, cell),
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([drawn, other]))[0, 1])) < 0.01


def test_normal_draws_are_normal():
    drawn = normal(1, "layer", Effect.LOGNORMAL, torch.arange(400_000)).double()
    assert float(drawn.mean()) == pytest.approx(0, abs=0.008)
    assert float(drawn.var()) == pytest.approx(1, abs=0.01)
    assert float((drawn**4).mean()) == pytest.approx(3, abs=0.1)


def test_unquantised_weights_cannot_be_sliced():
    crossbar = Crossbar(2, 8, weight_bits=4, cell_bits=2)
    with pytest.raises(ConfigError, match=r"set device.weight_bits"):
        store(WEIGHTS, WEIGHTS.max(), Device(lognormal=0.1), crossbar)


def test_too_few_cells_are_refused():
    with pytest.raises(ConfigError, match=r"set crossbar.weight_bits=9"):
        store(WEIGHTS, WEIGHTS.max(), Device(weight_bits=9), PAIRED)


def test_compensation_needs_a_pair():
    with pytest.raises(ConfigError, match="differential=true"):
        store(WEIGHTS, WEIGHTS.max(), Device(compensate=True), SHIFTED)


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_bits": 1},
        {"adc_bits": 0},
        {"dac_bits": 2},
        {"lognormal": -0.1},
        {"read_noise": float("nan")},
        {"stuck_off": 0.6, "stuck_on": 0.6},
        {"on_off": 1.0},
        {"on_ohms": 0},
        {"drift_time": 0.5},
        {"weight_scale": "row"},
        {"weight_range": "all"},
        {"adc_range": "auto"},
        {"placement": "rows"},
        {"lognormal": "a"},
        {"stuck_off": None},
        {"on_off": "a"},
        {"drift_time": [1]},
    ],
)
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=f"device.{next(iter(fields))}"):
        Device(**fields)


def test_stored_weights_of_levels_by_hand():
    stored = Stored(torch.tensor([[2.0], [5.0]]), (1, -4), 7, 0, torch.tensor(0.5))
    assert stored.weights(stored.levels, 0.0).tolist() == [-9]
