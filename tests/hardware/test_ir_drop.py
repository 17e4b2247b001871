import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.hardware.ir_drop import nodal_currents, seen_conductance


def test_one_cell_by_hand():
    # 100 ohm behind one segment of 1 ohm on either side.
    conductance = torch.tensor([[0.01]], dtype=torch.float64)
    assert nodal_currents(conductance, torch.ones(1), 1.0).tolist() == [pytest.approx(1 / 102)]
    assert seen_conductance(conductance, 1.0).tolist() == [[pytest.approx(1 / 102)]]


def test_two_by_two_by_hand():
    # One siemens everywhere, wires of 0.01 ohm. Cell (0, 0): its row shares 1 step with itself and
    # 1 with (0, 1); its column, 2 steps from the reader, 2 with itself and 1 with (1, 0): 5 steps.
    seen = seen_conductance(torch.ones(2, 2, dtype=torch.float64), 0.01)
    steps = torch.tensor([[5, 6], [4, 5]], dtype=torch.float64)
    torch.testing.assert_close(seen, 1 / (1 + 0.01 * steps))


def test_wires_without_resistance_change_nothing():
    conductance = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seen_conductance(conductance, 0.0), conductance)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.floats(1e4, 1e6), st.booleans())
def test_within_one_percent_of_the_nodal_solution_for_32_by_32_cells_at_1_ohm(seed, on, full):
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(32, 32, dtype=torch.float64, generator=generator)
    conductance = (torch.ones_like(share) if full else share) / on
    voltages = torch.rand(32, dtype=torch.float64, generator=generator)
    exact = nodal_currents(conductance, voltages, 1.0)
    torch.testing.assert_close(
        voltages @ seen_conductance(conductance, 1.0), exact, rtol=0.01, atol=0
    )
    if on < 5e4 and full:  # and far from where nothing is corrected
        assert float((voltages @ conductance / exact - 1).max()) > 0.01


def test_first_order_is_exact_to_first_order():
    torch.manual_seed(0)
    conductance, voltages = torch.rand(8, 8).double() * 1e-4, torch.rand(8).double()
    errors = []
    for ohms in (1.0, 0.1):
        exact = nodal_currents(conductance, voltages, ohms)
        errors.append(float((voltages @ seen_conductance(conductance, ohms) - exact).abs().max()))
    assert errors[1] < errors[0] / 50  # a tenth of the resistance, a hundredth of the error
