"""The proximal step of the group penalty, by hand and against the penalty it belongs to."""

import pytest
import torch
from torch import nn

from crosspruner.pruning.group_penalty import shrink
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.sparsity import GroupLayout


def layer(weight, grain="column", kin=2, kout=1):
    outputs, inputs = weight.shape
    module = nn.Linear(inputs, outputs, bias=False)
    module.weight.data = weight.clone()
    return MaskedLayer(module, GroupLayout("fc", grain, outputs, inputs, 1, kin, kout))


def test_by_hand():
    # one output, groups (3, 4), (0.1, 0.1), (0, 0), (5, 12); the last one is not penalised
    masked = layer(torch.tensor([[3.0, 4.0, 0.1, 0.1, 0.0, 0.0, 5.0, 12.0]]))
    shrink(masked, torch.tensor([[True, True, True, False]]), 2.5 / 2**0.5)
    # norms 5 - 2.5, and below zero: gone
    expected = torch.tensor([[1.5, 2.0, 0.0, 0.0, 0.0, 0.0, 5.0, 12.0]])
    torch.testing.assert_close(masked.weight.detach(), expected)


@pytest.mark.parametrize("outputs", [6, 4])
def test_transposed_convolutions_shrink_the_kernels_of_the_group(outputs):
    module = nn.ConvTranspose2d(6, outputs, 3)
    nn.init.constant_(module.weight, 0.5)
    masked = MaskedLayer(module, GroupLayout("t", "column", outputs, 6, 1, 2, 2))
    penalised = torch.zeros(masked.layout.shape, dtype=torch.bool)
    penalised[1, 0] = True  # output 1 from inputs 0 and 1
    shrink(masked, penalised, 0.125)
    expected = torch.full_like(module.weight, 0.5)  # stored as (input, output)
    expected[:2, 1] = 0.375
    torch.testing.assert_close(module.weight.detach(), expected.detach())


def test_convolutions_in_three_dimensions_shrink_the_kernels_of_the_group():
    module = nn.Conv3d(2, 3, 2)
    nn.init.constant_(module.weight, 0.5)
    # Input FMs are (channel, depth): the group holds channel 1.
    masked = MaskedLayer(module, GroupLayout("t", "column", 3, 4, 1, 2, 2))
    penalised = torch.zeros(masked.layout.shape, dtype=torch.bool)
    penalised[2, 1] = True
    shrink(masked, penalised, 0.125)
    expected = torch.full_like(module.weight, 0.5)
    expected[2, 1] = 0.375
    torch.testing.assert_close(module.weight.detach(), expected.detach())


def test_it_is_the_minimum_of_the_penalty_and_the_distance():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator)  # last input group and last output group short
    for grain in ("column", "crossbar"):
        masked = layer(weight, grain, kin=3, kout=2)
        layout = masked.layout
        penalised = torch.rand(layout.shape, generator=generator) < 0.5
        sizes = layout.sum_by_group(torch.ones_like(weight)).sqrt()

        def cost(found, layout=layout, penalised=penalised, sizes=sizes):
            norms = layout.sum_by_group(found.square()).sqrt()
            return float(
                (found - weight).square().sum() / 2 + 0.6 * (norms * sizes)[penalised].sum()
            )

        shrink(masked, penalised, 0.6)
        best = masked.weight.detach().clone()
        for _ in range(50):
            other = best + 0.05 * torch.randn(best.shape, generator=generator)
            assert cost(best) < cost(other)
        assert bool((best == 0).any())
