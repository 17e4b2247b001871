"""The order of a layer's input FMs."""

import pytest
import torch
from torch import nn

from crosspruner.pruning.layer_order import input_order
from crosspruner.pruning.moment_sums import MomentSums
from crosspruner.sparsity import GroupLayout


def seen(max_bytes=2**30):
    layer = nn.Linear(16, 6, bias=False).double()
    layout = GroupLayout("layer", "column", 6, 16, 1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(80, n, generator=generator).double() for n in (16, 6))
    sums = MomentSums(layer, layout, max_bytes)
    sums.update(inputs * torch.arange(1.0, 17), outputs)
    return layer, sums.average(), layout


@pytest.mark.parametrize("reorder", ["importance", "tetris", "linear"])
def test_an_order_names_every_input_fm_once(reorder):
    layer, moments, layout = seen()
    order = input_order(reorder, layer, moments, layer.weight, None, 8, layout)
    assert torch.equal(order.sort().values, torch.arange(16).unsqueeze(0))


def test_input_fms_are_sorted_by_their_energy_at_the_outputs():
    layer, moments, layout = seen()
    with torch.no_grad():
        layer.weight.copy_(2.0 ** torch.arange(16))
    order = input_order("importance", layer, moments, layer.weight, None, 8, layout)
    assert order[0, :3].tolist() == [15, 14, 13]
    assert torch.equal(order, input_order("linear", layer, moments, layer.weight, None, 8, layout))


def test_linear_leaves_convolutions_as_they_come():
    layer, moments, layout = seen()
    conv = nn.Conv2d(16, 6, 1)
    assert input_order("linear", conv, moments, layer.weight, None, 8, layout) is None
    assert input_order("none", layer, moments, layer.weight, None, 8, layout) is None


def test_cut_moments_can_be_ordered():
    layer, moments, layout = seen(max_bytes=8 * 8 * 8)
    assert moments.runs > 1
    assert input_order("importance", layer, moments, layer.weight, None, 8, layout) is not None
