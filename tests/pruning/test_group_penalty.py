"""The gradient of the group penalty, by hand and by autograd."""

import torch
from torch import nn

from crosspruner.pruning.group_penalty import penalty_gradient
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.sparsity import GroupLayout


def layer(weight, grain="column", kin=2, kout=1):
    outputs, inputs = weight.shape
    module = nn.Linear(inputs, outputs, bias=False)
    module.weight.data = weight.clone()
    return MaskedLayer(module, GroupLayout("fc", grain, outputs, inputs, 1, kin, kout))


def test_by_hand():
    # one output, groups (3, 4) and (0, 0) and (5, 12): norms 5, 0, 13; two weights each
    masked = layer(torch.tensor([[3.0, 4.0, 0.0, 0.0, 5.0, 12.0]]))
    penalised = torch.tensor([[True, True, False]])
    found = penalty_gradient(masked, penalised, 0.5)
    root = 2**0.5
    expected = torch.tensor([[0.3 * root, 0.4 * root, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)


def test_equals_autograd_at_both_grains():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator)  # last input group and last output group short
    for grain in ("column", "crossbar"):
        masked = layer(weight, grain, kin=3, kout=2)
        layout = masked.layout
        penalised = torch.rand(layout.shape, generator=generator) < 0.5
        free = weight.clone().requires_grad_()
        norms = layout.sum_by_group(free.square()).sqrt()
        sizes = layout.sum_by_group(torch.ones_like(weight)).sqrt()
        (0.3 * (norms * sizes)[penalised].sum()).backward()
        torch.testing.assert_close(penalty_gradient(masked, penalised, 0.3), free.grad)
