"""Networks on chips: the ideal one bit for bit, each array effect by hand, and both ways alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crosspruner.errors import PlanError
from crosspruner.hardware import (
    Crossbar,
    Device,
    IntegerArithmetic,
    OnDevice,
    device_weights,
    plan_model,
    simulate,
)

MAPPINGS = ("folded", "semifolded", "unfolded", "liang2018")


def linear(weight):
    """A linear layer without bias, in float64."""
    weight = torch.tensor(weight, dtype=torch.float64)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    module.weight = nn.Parameter(weight)
    return module


def run(module, x, device, crossbar=None, calibrate=None, seed=0):
    crossbar = crossbar or Crossbar(2, 4, differential=True)
    x = torch.tensor(x, dtype=torch.float64)
    plan = plan_model(module, (x.shape[1],), crossbar, exclude=())
    chip = OnDevice(device, seed)
    if calibrate is not None:
        chip.calibrate(plan, module, [torch.tensor(calibrate, dtype=torch.float64)])
    return simulate(plan, module, x, chip)


def network(seed=0):
    """Convolutions with a stride, groups and a border, then a linear layer; in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 4 * 3, 5),
    ).double()  # fmt: skip


def pruned_plan(model, mapping, crossbar=None, grain="column", seed=0):
    crossbar = crossbar or Crossbar(24, 48, differential=True)
    plan = plan_model(model, (3, 8, 6), crossbar, mapping, grain, exclude=())
    generator = torch.Generator().manual_seed(seed)
    masks = {
        layer.name: torch.rand(layer.mask_shape, generator=generator) < 0.7 for layer in plan.layers
    }
    return plan.pruned(masks)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_without_effects_a_chip_is_the_ideal_simulator_bit_for_bit(mapping):
    model = network().float()
    plan = pruned_plan(model, mapping)
    x = torch.randn(2, 3, 8, 6)
    assert torch.equal(simulate(plan, model, x, OnDevice(Device())), simulate(plan, model, x))


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("paired", [True, False])
def test_bits_alone_are_whole_number_arithmetic(mapping, paired):
    model = network()
    plan = plan_model(model, (3, 8, 6), Crossbar(40, 64, 4, 2, paired), mapping)
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    device = Device(weight_bits=4, input_bits=5, dac_bits=2, adc_bits=10, adc_range="full")
    found = simulate(plan, model, x, OnDevice(device))
    exact = simulate(plan, model, x, IntegerArithmetic(input_bits=5))
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


def test_adc_of_full_range_by_hand():
    # Two rows, inputs up to 3 (2 bits unsigned), cells up to 1: sums reach 6; 2 bits: 0 2 4 6.
    # Inputs 3, 2: 3 + 2 = 5 -> 4 (5 / 2 = 2.5 to even), and 2 - 3: 2 and 3 (1.5 to even) -> 2 - 4.
    module = linear([[1, 1], [-1, 1]])
    device = Device(weight_bits=2, input_bits=2, adc_bits=2, adc_range="full")
    assert run(module, [[3, 2]], device).tolist() == [[4, -2]]


def test_adc_of_full_range_of_signed_inputs_by_hand():
    # Three bits with a sign reach 3, as two without: sums reach 6, two bits of ADC: 0 2 4 6.
    module = linear([[1, 1], [-1, 1]])
    device = Device(weight_bits=2, input_bits=3, adc_bits=2, adc_range="full")
    # 3 - 2: 3 and 2 are read apart, 3 -> 4 (1.5 to even), 2 -> 2; -3 - 2: each in its column.
    assert run(module, [[3, -2]], device).tolist() == [[4 - 2, -4 - 2]]


@pytest.mark.parametrize("inputs", [[[3, 2]], [[3, -2]]])
def test_a_converter_that_applies_more_than_an_input_has_changes_nothing(inputs):
    module = linear([[1, 1], [-1, 1]])
    found = [
        run(module, inputs, Device(weight_bits=2, input_bits=3, dac_bits=n, adc_bits=2,
                                   adc_range="full"))
        for n in (None, 3, 8)
    ]  # fmt: skip
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_adc_of_full_range_does_not_depend_on_what_is_computed_together(monkeypatch):
    # Without input_bits the range is that of the call's largest input, 8, for both crossbars:
    # sums reach 16, two bits: 0, 16/3, ... Crossbar 0 sees 1 + 1 -> 0, crossbar 1 8 + 8 = 16.
    module = linear([[1, 1, 1, 1]])
    device = Device(adc_bits=2, adc_range="full")
    for chunk in (1, 1 << 22):
        monkeypatch.setattr("crosspruner.hardware.execute._CHUNK", chunk)
        assert run(module, [[1, 1, 8, 8]], device).tolist() == [[pytest.approx(16)]]


def test_adc_of_calibrated_range_by_hand():
    # Calibrated on (3, 2), the largest current is 5: 2 bits give 0, 5/3, 10/3, 5.
    module = linear([[1, 1], [-1, 1]])
    device = Device(weight_bits=2, input_bits=2, adc_bits=2)
    y = run(module, [[3, 2], [3, 3]], device, calibrate=[[3, 2]])
    third = 5 / 3  # (3, 2): 5 and 2 - 3 -> 5/3 - 10/3; (3, 3): 6 clips to 5, and 3 - 3
    assert y.tolist() == [pytest.approx([5, third - 2 * third]), pytest.approx([5, 0])]


def test_adc_must_be_calibrated():
    with pytest.raises(PlanError, match=r"OnDevice\.calibrate"):
        run(linear([[1, 1]]), [[1, 1]], Device(adc_bits=4))


def test_input_bits_by_hand():
    # Signed, 2 bits: -1, 0, 1 times 4. Inputs 4, 1 -> 4, 0; -3 -> -4.
    device = Device(input_bits=2)
    y = run(linear([[1, 0.5], [-1, 1]]), [[4, 1], [-3, 4]], device)
    assert y.tolist() == [[4, -4], [-2, 8]]


def test_weight_scale_per_column_by_hand():
    # 2 bits: a layer's weights are rounded to -1, 0, 1; column by column, to +-0.25 as well.
    module = linear([[1, 0], [0.25, -0.25]])
    x = [[1, 0], [0, 1]]
    layer = run(module, x, Device(weight_bits=2))
    column = run(module, x, Device(weight_bits=2, weight_scale="column"))
    assert layer.T.tolist() == [[1, 0], [0, 0]]
    assert column.T.tolist() == [[1, 0], [0.25, -0.25]]


def test_full_scale_of_least_squared_error_by_hand():
    # Two bits: -s, 0 or s. Of nine weights of 1 and one of 1.9 the best s is 1.09, at an error of
    # 0.73, and the nearest that is tried 1.9 * 0.95^11; 1.9 itself has an error of 9 * 0.81.
    module = linear([[1.0] * 9 + [1.9]])
    x = torch.eye(10).tolist()
    crossbar = Crossbar(10, 4, differential=True)
    clipped = run(module, x, Device(weight_bits=2, weight_range="mse"), crossbar)
    torch.testing.assert_close(clipped, torch.full((10, 1), 1.9 * 0.95**11, dtype=torch.float64))
    assert torch.equal(
        run(module, x, Device(weight_bits=2), crossbar),
        torch.full((10, 1), 1.9, dtype=torch.float64),
    )


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 999), st.sampled_from(["layer", "column"]))
def test_clipping_never_stores_weights_worse(bits, seed, scale):
    torch.manual_seed(seed)
    model = nn.Linear(12, 6, bias=False).double()
    model.weight.data *= torch.randn(6, 12, dtype=torch.float64).exp()  # a few large ones
    plan = plan_model(model, (12,), Crossbar(4, 4, differential=True), exclude=())
    error = {}
    for weight_range in ("max", "mse"):
        device = Device(weight_bits=bits, weight_scale=scale, weight_range=weight_range)
        held = device_weights(plan, model, device, [0])["weight"][0]
        error[weight_range] = float((held - model.weight.detach()).square().sum())
    assert error["mse"] <= error["max"] * (1 + 1e-12)


@pytest.mark.parametrize("weight_range", ["max", "mse"])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_weights_that_only_meet_padding_set_no_full_scale(mapping, weight_range):
    # On one pixel a 3 x 3 kernel needs its middle: 1 and 0.25, in two bits 1 and 0. Unfolded, the
    # 8 beside it is in no cell, nor semi-folded.
    module = nn.Conv2d(1, 2, 3, padding=1, bias=False).double()
    nn.init.zeros_(module.weight)
    module.weight.data[:, 0, 1, 1] = torch.tensor([1.0, 0.25])
    module.weight.data[:, 0, 1, 0] = 8.0
    crossbar = Crossbar(9, 4, differential=True)
    plan = plan_model(module, (1, 1, 1), crossbar, mapping, exclude=())
    device = Device(weight_bits=2, weight_range=weight_range)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    arrays = simulate(plan, module, x, OnDevice(device)).flatten().tolist()
    weights = {k: v[0] for k, v in device_weights(plan, module, device, [0]).items()}
    convolutions = torch.func.functional_call(module, weights, (x,)).flatten().tolist()
    assert arrays == pytest.approx(convolutions)
    assert arrays == pytest.approx([0, 0] if mapping == "folded" else [1, 0])


def test_a_layer_of_zeros_has_a_full_scale():
    for scale in ("layer", "column"):
        device = Device(weight_bits=2, weight_range="mse", weight_scale=scale)
        module = linear([[0.0, 0.0]])
        plan = plan_model(module, (2,), Crossbar(2, 4, differential=True), exclude=())
        assert run(module, [[1.0, 2.0]], device).tolist() == [[0.0]]
        assert device_weights(plan, module, device, [0])["weight"].tolist() == [[[0.0, 0.0]]]


def test_wires_by_hand():
    # Cells of 1 ohm, wires of 0.01; the columns are +, - of output 0, +, - of output 1. Off cells
    # are open: what flows is [[1, 0, 0, 1], [1, 0, 1, 0]].
    y = run(linear([[1, 1], [-1, 1]]), [[1, 0], [0, 1]], Device(wire_ohms=0.01, on_ohms=1))
    # Row 0: cell 0 shares 1 + 1 steps of its row, 2 + 1 of its column; cell 3 shares 1 + 4 and 2.
    # Row 1: cell 0 shares 1 + 1 and 1 + 1; cell 2 shares 1 + 3 and 1.
    assert y[0].tolist() == pytest.approx([1 / 1.05, -1 / 1.07])
    assert y[1].tolist() == pytest.approx([1 / 1.04, 1 / 1.05])


@settings(max_examples=8, deadline=None)
@given(st.floats(0.01, 0.2), st.booleans(), st.integers(0, 99))
def test_read_noise_statistics(sigma, paired, seed):
    # Each of two cells a row adds sigma * input; a shifted cell's range is twice the weight's.
    module, x = linear([[0.7, -0.2]]), [[3.0, 4.0]] * 20_000
    crossbar = Crossbar(2, 2, differential=paired)
    y = run(module, x, Device(read_noise=sigma), crossbar, seed=seed) - (2.1 - 0.8)
    spread = 0.7 * sigma * 5 * (2**0.5 if paired else 2)
    assert float(y.mean()) == pytest.approx(0, abs=5 * spread / 141)
    assert float(y.std()) == pytest.approx(spread, rel=0.03)
