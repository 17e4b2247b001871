"""The orders that a layer may choose from."""

import pytest
import torch
from torch import nn

from crosspruner.pruning.layer_order import orders_to_try
from crosspruner.pruning.moment_sums import MomentSums
from crosspruner.sparsity import GroupLayout


def seen(max_bytes=2**30):
    layer = nn.Linear(16, 6, bias=False).double()
    layout = GroupLayout("layer", "column", 6, 16, 1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(80, n, generator=generator).double() for n in (16, 6))
    sums = MomentSums(layer, layout, max_bytes)
    sums.update(inputs * torch.arange(1.0, 17), outputs)
    return sums.average(), layer.weight, layout


@pytest.mark.parametrize(("reorder", "number"), [("none", 1), ("importance", 1), ("best", 3)])
def test_best_tries_them_all(reorder, number):
    moments, weight, layout = seen()
    orders = orders_to_try(reorder, moments, weight, None, 8, layout)
    assert len(orders) == number
    assert [order is None for order in orders] == [reorder != "importance"] + [False] * (number - 1)
    for order in orders:
        if order is not None:
            assert torch.equal(order.sort().values, torch.arange(16).unsqueeze(0))


def test_orders_that_are_alike_are_tried_once(monkeypatch):
    monkeypatch.setattr("crosspruner.sparsity.reorder.MOST_FMS", 15)  # tetris becomes importance
    moments, weight, layout = seen()
    assert len(orders_to_try("best", moments, weight, None, 8, layout)) == 2


def test_cut_moments_leave_input_fms_as_they_come():
    moments, weight, layout = seen(max_bytes=8 * 8 * 8)
    assert moments.runs > 1
    assert orders_to_try("best", moments, weight, None, 8, layout) == [None]
    assert orders_to_try("importance", moments, weight, None, 8, layout)[0] is not None
