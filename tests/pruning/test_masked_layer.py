"""A layer under its mask: what is pruned waits, what is revived comes back."""

import pytest
import torch
from torch import nn

from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.sparsity import GroupLayout


def masked_linear():
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    return MaskedLayer(module, GroupLayout("0", "column", 2, 2, 1, 1, 1))


def test_pruned_weights_are_zero_and_come_back():
    layer = masked_linear()
    layer.set_mask(torch.tensor([[True, False], [True, True]]))
    assert layer.weight.tolist() == [[1.0, 0.0], [3.0, 4.0]]
    assert layer.latent().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    layer.set_mask(torch.tensor([[False, True], [True, True]]))
    assert layer.weight.tolist() == [[0.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("module", "kernels"),
    [
        (nn.ConvTranspose2d(4, 4, 3), [[2, 1], [3, 1]]),  # stored as (input, output)
        (nn.ConvTranspose2d(4, 2, 3), [[2, 1], [3, 1]]),
        (nn.ConvTranspose1d(4, 4, 2), [[2, 1], [3, 1]]),
        (nn.Conv2d(4, 4, 3), [[1, 2], [1, 3]]),
    ],
    ids=["square", "narrowing", "one axis", "plain"],
)
def test_a_mask_acts_on_the_kernels_between_its_feature_maps(module, kernels):
    layer = MaskedLayer(module, GroupLayout("0", "column", module.out_channels, 4, 1, 2, 1))
    mask = torch.ones(layer.layout.shape, dtype=torch.bool)
    mask[1, 1] = False  # output 1 from inputs 2 and 3
    layer.set_mask(mask)
    assert (layer.weight == 0).flatten(2).all(2).nonzero().tolist() == kernels


def test_the_slope_counts_pruned_groups_too_and_their_gradient_is_dropped():
    layer = masked_linear()
    layer.set_mask(torch.tensor([[True, False], [True, True]]))
    (layer.weight * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    slope = layer.split_gradient()
    assert slope.tolist() == [[1.0, 20.0], [300.0, 4000.0]]
    assert layer.weight.grad.tolist() == [[1.0, 0.0], [100.0, 1000.0]]


def test_a_gradient_is_dropped_where_there_is_one_and_the_weight_is_pruned():
    layer = masked_linear()
    layer.set_mask(torch.tensor([[True, False], [True, True]]))
    layer.mask_gradient()
    assert layer.weight.grad is None
    (layer.weight * torch.tensor([[1.0, torch.inf], [100.0, 1000.0]])).sum().backward()
    layer.mask_gradient()
    assert layer.weight.grad.tolist() == [[1.0, 0.0], [100.0, 1000.0]]


def test_crossbars_and_what_is_gone_follow_the_mask():
    layer = MaskedLayer(nn.Linear(4, 4), GroupLayout("0", "column", 4, 4, 1, 2, 2, 3))

    def is_at(crossbars):
        assert layer.crossbars == crossbars
        assert torch.equal(layer.gone, ~layer.kept)
        assert torch.equal(layer.kept, layer.spread(layer.mask))

    is_at(12)  # 2 x 2 blocks of 3 crossbars
    mask = torch.tensor([[True, False], [False, True], [False, False], [True, False]])
    layer.set_mask(mask)
    is_at(6)  # 2 columns of the first input group fill one block, 1 of the other another
    saved = layer.state_dict()
    layer.set_mask(torch.ones_like(mask))
    is_at(12)
    layer.load_state_dict(saved)
    is_at(6)
    before = layer.gone
    layer.reorder(torch.tensor([[0, 2, 1, 3]]))
    is_at(6)
    assert not torch.equal(layer.gone, before)  # other inputs are in the groups now


def test_momentum_and_decay_cannot_revive_what_is_pruned():
    layer = masked_linear()
    optimizer = torch.optim.SGD([layer.weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):  # builds up momentum while everything is kept
        optimizer.zero_grad()
        layer.weight.sum().backward()
        optimizer.step()
    layer.set_mask(torch.tensor([[True, False], [True, True]]))
    for _ in range(3):
        optimizer.zero_grad()
        layer.weight.sum().backward()
        layer.split_gradient()
        optimizer.step()
        layer.enforce()
        assert layer.weight[0, 1] == 0.0


def test_state_survives_a_round_trip():
    layer, other = masked_linear(), masked_linear()
    layer.set_mask(torch.tensor([[True, False], [False, True]]))
    other.module.load_state_dict(layer.module.state_dict())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.mask, layer.mask)
    other.set_mask(torch.ones(2, 2, dtype=torch.bool))
    assert other.weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]
