"""Fault-aware placement: by hand, and never worse than as planned."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crosspruner.hardware import (
    Crossbar,
    Device,
    device_weights,
    plan_model,
)
from crosspruner.hardware.cells import store, stuck
from crosspruner.hardware.placement import place


def test_placement_by_hand():
    # One weight per column of a row; the cell of column 0 is stuck off. The smallest weight, in
    # column 2, takes it.
    crossbar = Crossbar(1, 6, differential=True)
    device = Device(stuck_off=0.17, placement="columns")
    cell = torch.arange(6)
    seed = next(
        s for s in range(999) if (stuck(device, s, "a", cell) != 0).tolist() == [1, 0, 0, 0, 0, 0]
    )
    weights = torch.tensor([[[0.9, 1.0, 0.1]]])
    stored = store(weights, torch.tensor(1.0), device, crossbar)
    found = place(stored, device, crossbar, seed, "a", torch.tensor([0]))
    assert found.columns[0, 2] == 0
    assert found.rows.tolist() == [[0]]


def test_a_column_that_is_not_used_takes_the_faults():
    crossbar = Crossbar(2, 8, differential=True)
    device = Device(stuck_on=0.15, placement="columns")
    cell = torch.arange(16)
    bad = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    seed = next(s for s in range(9999) if stuck(device, s, "a", cell).tolist() == bad)
    stored = store(torch.full((1, 2, 3), 0.5), torch.tensor(1.0), device, crossbar)
    found = place(stored, device, crossbar, seed, "a", torch.tensor([0]))
    assert 0 not in found.columns[0, :3].tolist()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.booleans())
def test_placement_never_makes_the_stored_error_larger(seed, compensate):
    torch.manual_seed(seed)
    module = nn.Linear(30, 20, bias=False)
    plan = plan_model(module, (30,), Crossbar(16, 24, differential=True), exclude=())
    errors = []
    for placement in ("none", "columns", "both"):
        device = Device(stuck_off=0.05, stuck_on=0.05, placement=placement, compensate=compensate)
        stored = device_weights(plan, module, device, [seed])["weight"]
        errors.append(float((stored - module.weight).detach().square().sum()))
    # What is minimised leaves out pairs with two faults, which are rare.
    assert errors[1] <= 1.05 * errors[0] + 1e-6
    assert errors[2] <= 1.05 * errors[0] + 1e-6
