"""The weights of a chip: one cell each, and what its arrays compute where each is held once."""

import pytest
import torch
from torch import nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import (
    Crossbar,
    Device,
    OnDevice,
    device_weights,
    plan_model,
    simulate,
)
from crosspruner.hardware.cell_map import map_cells

from .test_nonideal import MAPPINGS, network, pruned_plan


def test_every_weight_of_the_plan_has_one_cell_and_no_two_share_it():
    model = network()
    for mapping in MAPPINGS:
        plan = pruned_plan(model, mapping)
        for layer in plan.layers:
            cells = map_cells(layer)
            weight = model.get_submodule(layer.name).weight
            kept = layer.kept.view(*layer.kept.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
            held = torch.zeros(weight.numel(), dtype=torch.int64)
            held.index_add_(0, cells.weight, torch.ones_like(cells.weight))
            assert torch.equal(held.view_as(weight) == 1, kept)
            place = torch.stack([cells.number, cells.row, cells.column])
            assert place.unique(dim=1).shape == place.shape
            assert int(cells.number.max()) < layer.compute_crossbars
            assert int(cells.row.max()) < layer.crossbar.rows
            assert int(cells.column.max()) < layer.crossbar.weight_columns


def test_taps_that_only_meet_padding_have_no_cell():
    module = nn.Conv2d(1, 1, 5, padding=2)
    layer = plan_model(module, (1, 1, 3), "64x64", "unfolded", exclude=()).layers[0]
    # One row of three pixels: of 5 x 5 taps only the middle row is ever used.
    assert map_cells(layer).weight.tolist() == [10, 11, 12, 13, 14]


WEIGHT_EFFECTS = [
    Device(weight_bits=4),
    Device(weight_bits=4, weight_scale="column"),
    Device(weight_bits=3, weight_range="mse"),
    Device(weight_bits=3, weight_scale="column", weight_range="mse"),
    Device(lognormal=0.2),
    Device(gaussian=0.05),
    Device(lognormal=0.1, on_off=8),
    Device(stuck_off=0.1, stuck_on=0.1),
    Device(stuck_off=0.1, stuck_on=0.1, compensate=True, placement="both"),
    Device(drift=0.05, drift_spread=0.02, drift_time=1e4),
]


@pytest.mark.parametrize("device", WEIGHT_EFFECTS, ids=lambda d: repr(d)[-60:])
@pytest.mark.parametrize("grain", ["column", "crossbar"])
def test_weights_of_a_chip_are_what_its_arrays_compute_where_each_is_held_once(device, grain):
    model = network()
    plan = pruned_plan(model, "folded", grain=grain)
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    arrays = simulate(plan, model, x, OnDevice(device, seed=7))
    weights = {k: v[1] for k, v in device_weights(plan, model, device, [3, 7]).items()}
    convolutions = torch.func.functional_call(model, weights, (x,))
    torch.testing.assert_close(convolutions, arrays, rtol=1e-5, atol=1e-6)
    assert (convolutions - simulate(plan, model, x)).abs().max() > 1e-3


@pytest.mark.parametrize("device", [Device(), *WEIGHT_EFFECTS], ids=lambda d: repr(d)[-60:])
@pytest.mark.parametrize("groups", [1, 2])
def test_square_transposed_convolutions_are_what_their_arrays_compute(device, groups):
    # (Cin, Cout / G) and (Cout, Cin / G) are alike here, and must not be taken for each other.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(6, 6, 3, 2, 1, groups=groups), nn.Flatten(1, 2),
        nn.ConvTranspose1d(30, 30, 3, groups=groups),
    ).double()  # fmt: skip
    crossbar = Crossbar(24, 48, differential=True)
    plan = plan_model(model, (6, 3, 3), crossbar, "folded", "column", exclude=())
    plan = plan.pruned({layer.name: torch.rand(layer.mask_shape) < 0.6 for layer in plan.layers})
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    arrays = simulate(plan, model, x, OnDevice(device, seed=7))
    weights = {k: v[1] for k, v in device_weights(plan, model, device, [3, 7]).items()}
    assert weights["0.weight"].shape == model[0].weight.shape
    convolutions = torch.func.functional_call(model, weights, (x,))
    torch.testing.assert_close(convolutions, arrays, rtol=1e-5, atol=1e-6)


def test_a_transposed_convolution_on_chips_by_hand():
    # Output 0 is input 0 + 2 input 1, output 1 is 3 input 0; of the plan, output 0 keeps input 0.
    module = nn.ConvTranspose2d(2, 2, 1, bias=False).double()
    weight = torch.tensor([[1.0, 3.0], [2.0, 0.0]])  # (input, output)
    module.weight = nn.Parameter(weight.double()[..., None, None])
    plan = plan_model(module, (2, 1, 1), Crossbar(1, 4, differential=True), grain="column",
                      exclude=())  # fmt: skip
    plan = plan.pruned({"": torch.tensor([[True, False], [True, True]])})
    held = device_weights(plan, module, Device(), [0])["weight"]
    assert held[0, :, :, 0, 0].tolist() == [[1, 3], [0, 0]]


def test_copies_of_a_kernel_have_errors_of_their_own():
    # A 1x1 kernel on a row of 4 pixels, semi-folded: one copy per pixel.
    module = nn.Conv2d(1, 1, 1, bias=False).double()
    nn.init.ones_(module.weight)
    plan = plan_model(module, (1, 1, 4), Crossbar(8, 8, differential=True), exclude=())
    x = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    own = simulate(plan, module, x, OnDevice(Device(lognormal=0.1)))
    assert own.unique().numel() == 4
    one = device_weights(plan, module, Device(lognormal=0.1), [0])["weight"]
    assert float(one) == pytest.approx(float(own[0, 0, 0, 0]))


def test_effects_on_arrays_have_no_weights():
    with pytest.raises(ConfigError, match="act on whole arrays"):
        device_weights(pruned_plan(network(), "folded"), network(), Device(adc_bits=8), [0])


def test_weights_that_are_no_matrix_are_refused():
    layer = nn.Conv3d(4, 4, 1)
    plan = plan_model(layer, (4, 2, 5, 5), Crossbar(8, 8, differential=True), "folded", exclude=())
    with pytest.raises(ConfigError, match="no plain parameter that is its matrix"):
        device_weights(plan, layer, Device(weight_bits=4), [0])
