import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, IntegerArithmetic, plan_model, simulate
from crosspruner.hardware.integer import (
    cell_planes,
    input_digits,
    lossless_adc_bits,
    quantise,
)


def column(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1)


def test_differential_weights_on_two_bit_cells():
    # 5 = 01 01 on the positive columns, 3 = 00 11 on the negative ones.
    crossbar = Crossbar(2, 4, weight_bits=4, cell_bits=2, differential=True)
    planes = [
        (worth, plane.flatten().tolist()) for worth, plane in cell_planes(column(5, -3), crossbar)
    ]
    assert planes == [(1, [1, 0]), (4, [1, 0]), (-1, [0, 3]), (-4, [0, 0])]


def test_shifted_weights_on_two_bit_cells():
    # 5 + 8 = 13 = 11 01, -3 + 8 = 5 = 01 01.
    crossbar = Crossbar(2, 2, weight_bits=4, cell_bits=2)
    planes = [
        (worth, plane.flatten().tolist()) for worth, plane in cell_planes(column(5, -3), crossbar)
    ]
    assert planes == [(1, [1, 1]), (4, [3, 1])]


def test_inputs_by_digits_negative_ones_apart():
    digits = [(w, d.flatten().tolist()) for w, d in input_digits(column(6, -1), 3, 2)]
    assert digits == [(1, [2, 0]), (4, [1, 0]), (-1, [0, 1]), (-4, [0, 0])]


@pytest.mark.parametrize("differential", [True, False])
def test_product_by_hand(differential):
    # 3 * 5 + 2 * (-3) = 9
    crossbar = Crossbar(2, 4, weight_bits=4, cell_bits=2, differential=differential)
    y = IntegerArithmetic(input_bits=4).product(column(3, 2).mT, column(5, -3), crossbar)
    assert y.tolist() == [[[9]]]


def test_narrow_adc_rounds_each_column_sum():
    # Sums reach 2 rows * 3 = 6; two bits give 3 steps of 2. Digits of 3, 2: [1, 0] and [1, 1].
    # Low cells of 3, 2: sums 3 -> 4 and 5 -> 4 (halves go to even), so 4 + 2 * 4 = 12, not 13.
    crossbar = Crossbar(2, 8, weight_bits=4, cell_bits=2, differential=True)
    y = IntegerArithmetic(2, adc_bits=2).product(column(3, 2).mT, column(3, 2), crossbar)
    assert y.tolist() == [[[12]]]


def test_lossless_adc_bits():
    assert lossless_adc_bits(Crossbar(2, 8, 4, 2)) == 3  # 0..6
    assert lossless_adc_bits(Crossbar(128, 128, 8, 2)) == 9  # 0..384
    assert lossless_adc_bits(Crossbar(128, 128, 8, 2), dac_bits=2) == 11  # 0..1152


def test_quantise_keeps_zero_and_fills_the_range():
    values, scale = quantise(torch.tensor([-2.0, 0.0, 1.0]), 4)
    assert values.tolist() == [-7, 0, 4]
    assert scale == 2 / 7
    values, scale = quantise(torch.tensor([0.0, 3.0]), 2, signed=False)
    assert (values.tolist(), scale) == ([0, 3], 1)
    assert quantise(torch.zeros(2), 8)[0].tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_wide_adc_equals_exact_integer_arithmetic(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    crossbar = Crossbar(
        data.draw(st.integers(4, 40)),
        data.draw(st.integers(64, 80)),  # room for 4 outputs of 16 cells
        data.draw(st.integers(2, 8)),
        data.draw(st.integers(1, 8)),
        data.draw(st.booleans()),
    )
    dac_bits = data.draw(st.integers(1, 4))
    arithmetic = IntegerArithmetic(
        data.draw(st.integers(2, 8)), dac_bits, lossless_adc_bits(crossbar, dac_bits)
    )
    module = nn.Conv2d(4, 5, 3, data.draw(st.integers(1, 2)), 1, bias=False).double()
    mapping = data.draw(st.sampled_from(["folded", "semifolded", "unfolded", "liang2018"]))
    plan = plan_model(module, (4, 7, 6), crossbar, mapping)
    x = torch.randn(1, 4, 7, 6, dtype=torch.float64)
    x = x.relu() if data.draw(st.booleans()) else x
    y = simulate(plan, module, x, arithmetic)
    inputs, input_scale = quantise(x, arithmetic.input_bits, bool((x < 0).any()))
    weights, weight_scale = quantise(module.weight.detach(), crossbar.weight_bits)
    exact = F.conv2d(inputs, weights, stride=module.stride, padding=1)
    assert torch.equal(y, exact * (input_scale * weight_scale))


def test_more_adc_bits_come_nearer():
    torch.manual_seed(0)
    module, x = nn.Linear(100, 20).double(), torch.randn(8, 100, dtype=torch.float64)
    plan = plan_model(module, (100,), Crossbar(64, 64, cell_bits=2, differential=True))
    exact = simulate(plan, module, x, IntegerArithmetic())
    errors = [
        float((simulate(plan, module, x, IntegerArithmetic(adc_bits=n)) - exact).abs().max())
        for n in (4, 6, 8)
    ]
    assert errors[0] > errors[1] > errors[2] == 0
    assert (exact - module(x)).abs().max() < 0.05


@pytest.mark.parametrize("fields", [{"input_bits": 0}, {"dac_bits": 0}, {"adc_bits": -1}])
def test_bits_must_be_positive(fields):
    with pytest.raises(ConfigError, match="at least 1"):
        IntegerArithmetic(**fields)


def test_one_bit_holds_no_sign():
    with pytest.raises(ConfigError, match="use 2 bits or more"):
        quantise(torch.ones(1), 1)
