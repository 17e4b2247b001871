"""Costs by hand on the worked example, and against events counted one by one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, UnitCosts, plan_model
from crosspruner.hardware.cost import QUANTITIES

UNITS = UnitCosts(
    input_bits=8, dac_bits=2, array_read_pj=0.001, dac_pj=0.5, adc_pj=2.0, adder_pj=0.1,
    buffer_pj=0.01, leakage_mw=0.2, read_ns=10.0, adc_ns=1.0, columns_per_adc=2,
    cell_um2=0.1, dac_um2=1.0, adc_um2=100.0, adder_um2=10.0,
)  # fmt: skip


def counts(cost, layer=None):
    return {
        (line.quantity, line.event): line.count
        for line in cost.lines
        if layer is None or line.layer == layer
    }


def example():
    """The 5 x 7 layer on 4 x 4 crossbars of docs/mapping.md."""
    return plan_model(nn.Linear(5, 7), (5,), "4x4", exclude=())


def test_the_worked_example_by_hand():
    # Four crossbars: 4 and 1 rows, 4 and 3 columns. 8 bits, two at a time: four reads.
    cost = example().cost(UNITS)
    found = counts(cost)
    assert found["energy", "array_read"] == 4 * 16 * 4
    assert found["energy", "dac"] == (4 + 4 + 1 + 1) * 4
    assert found["energy", "adc"] == (4 + 3 + 4 + 3) * 4
    assert found["energy", "adder"] == 14 * 4 + 7  # each output adds two sums
    assert found["energy", "buffer"] == (5 + 5) * 8  # five inputs, written once, read once
    assert found["latency", "read"] == 4
    # Two ADCs for four columns: two conversions each. Latency 4 * (10 + 2).
    assert cost.latency_us == pytest.approx(0.048)
    plan = example()
    assert found["energy", "leakage"] == pytest.approx(plan.total_crossbars * 48)
    assert found["area", "array"] == plan.total_crossbars * 16
    assert found["area", "dac"] == plan.total_crossbars * 4
    assert found["area", "adc"] == found["area", "adder"] == plan.total_crossbars * 2


def test_the_pruned_example_by_hand():
    # Input group 0 keeps 5 columns on two crossbars, group 1 three on one.
    mask = torch.zeros(7, 2, dtype=torch.bool)
    mask[[0, 1, 3, 4, 6], 0] = True
    mask[[1, 4, 6], 1] = True
    plan = example().pruned({"": mask}, "column")
    found = counts(plan.cost(UNITS))
    assert found["energy", "array_read"] == 3 * 16 * 4
    assert found["energy", "dac"] == (4 + 4 + 1) * 4
    assert found["energy", "adc"] == 8 * 4
    assert found["energy", "adder"] == 8 * 4 + 3  # outputs 1, 4 and 6 add two sums
    assert found["energy", "buffer"] == (5 + 5) * 8


def test_every_number_is_events_times_unit_cost():
    cost = example().cost(UNITS)
    rows = cost.rows()
    assert all(row["cost"] == row["count"] * row["unit_cost"] for row in rows)
    assert {row["unit"] for row in rows} == set(QUANTITIES.values())
    energy = sum(row["cost"] for row in rows if row["quantity"] == "energy")
    assert cost.energy_uj == pytest.approx(energy * 1e-6)
    area = sum(row["cost"] for row in rows if row["quantity"] == "area")
    assert cost.area_mm2 == pytest.approx(area * 1e-6)


def served(layer, axis):
    """Along one axis: (outputs, rows that hold a weight of one of them) of each slice."""
    geometry, window = layer.geometry, layer.tiling.window[axis]
    if layer.tiling.mapping == "folded" or (layer.tiling.mapping == "semifolded" and axis == 0):
        return [(1, geometry.kernel[axis])]
    found = []
    for first in range(0, geometry.out_size[axis], window):
        outputs = range(first, min(first + window, geometry.out_size[axis]))
        taps = range(geometry.kernel[axis])
        read = {o * geometry.stride[axis] - geometry.padding[axis] + k
                for o in outputs for k in taps}  # fmt: skip
        found.append((len(outputs), sum(0 <= i < geometry.in_size[axis] for i in read)))
    return found


def test_what_a_window_has_past_the_feature_map_costs_nothing():
    # Five outputs in windows of two: 2, 2 and 1 columns. Their rows, of four a window: pixels 0 to
    # 2 (one before is padding), 1 to 4, 3 and 4.
    module = nn.Conv2d(1, 1, (1, 3), padding=(0, 1))
    plan = plan_model(module, (1, 1, 5), "4x2", "semifolded", exclude=())
    assert (plan.layers[0].tiling.window, plan.layers[0].slices) == ((1, 2), 3)
    found = counts(plan.cost(UnitCosts(input_bits=1)))
    assert found["energy", "adc"] == found["energy", "adder"] == 2 + 2 + 1
    assert found["energy", "dac"] == 3 + 4 + 2
    assert found["energy", "buffer"] == 5 + (3 + 4 + 2)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_columns_and_additions_against_crossbars_listed_one_by_one(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 9999)))
    groups = draw(st.sampled_from([1, 1, 2]))
    module = nn.Conv2d(
        groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 6)),
        draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(0, 2)), groups=groups,
    )  # fmt: skip
    shape = (module.in_channels, draw(st.integers(4, 9)), draw(st.integers(4, 9)))
    crossbar = Crossbar(draw(st.integers(4, 40)), draw(st.integers(8, 40)), differential=True)
    mapping = draw(st.sampled_from(["folded", "semifolded", "unfolded", "liang2018"]))
    if mapping == "liang2018":
        mapping = "semifolded"
    grain = draw(st.sampled_from(["crossbar", "column"]))
    plan = plan_model(module, shape, crossbar, mapping, grain, exclude=())
    plan = plan.pruned({"": torch.rand(plan.layers[0].mask_shape) < draw(st.floats(0.2, 1))})
    layer = plan.layers[0]
    units = UnitCosts(input_bits=3, dac_bits=3)  # one read a phase
    found = counts(plan.cost(units))

    rows = columns = 0
    sums = {}
    packing = layer.packing
    for owner, outs in zip(packing.block_input, packing.block_outputs, strict=True):
        fms = (layer.input_table[owner] >= 0).sum().item()
        for down, across in itertools.product(*(served(layer, axis) for axis in (0, 1))):
            rows += fms * down[1] * across[1]  # in pieces, where they exceed the crossbar
            held = down[0] * across[0]
            for _split, out in itertools.product(range(layer.row_splits), outs.tolist()):
                if out >= 0:
                    columns += held
                    sums[out] = sums.get(out, 0) + held
    at_once = {"folded": 1, "semifolded": layer.geometry.out_size[1]}.get(
        mapping, layer.geometry.out_size[0] * layer.geometry.out_size[1]
    )
    additions = sum(n - at_once for n in sums.values())
    assert found["energy", "dac"] == rows * layer.phases
    assert found["energy", "adc"] == columns * crossbar.cells_per_weight * layer.phases
    assert found["energy", "adder"] == found["energy", "adc"] + additions * layer.phases


def test_kernel_rows_of_their_own_crossbars_are_all_driven():
    module = nn.Conv2d(8, 4, 3, padding=1)
    plan = plan_model(module, (8, 32, 32), "256x256", "liang2018", exclude=())
    found = counts(plan.cost(UnitCosts(input_bits=1)))
    # Three crossbars of 8 FMs * 32 rows, 4 * 32 * 2 columns, 32 phases.
    assert found["energy", "dac"] == 3 * 256 * 32
    assert found["energy", "adc"] == 3 * 256 * 32
    assert found["energy", "adder"] == 3 * 256 * 32 + 2 * 4 * 32 * 32


def test_pruning_saves_energy_and_area_but_no_phases():
    module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3))
    plan = plan_model(module, (8, 12, 12), "64x64", exclude=())
    mask = {layer.name: torch.ones(layer.mask_shape, dtype=torch.bool) for layer in plan.layers}
    mask["1"][::2] = False
    dense, pruned = plan.cost(UNITS), plan.pruned(mask).cost(UNITS)
    assert pruned.energy_uj < dense.energy_uj
    assert pruned.area_mm2 < dense.area_mm2
    assert pruned.latency_us == dense.latency_us
    assert dense.interval_us < dense.latency_us


@pytest.mark.parametrize("fields", [{"adc_pj": -1.0}, {"dac_bits": 0}, {"read_ns": float("inf")}])
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(ConfigError, match=f"cost.{next(iter(fields))}"):
        UnitCosts(**fields)
