"""Orders of input FMs: by hand, then against every order there is."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.sparsity import GroupLayout, project
from crosspruner.sparsity.reorder import _sums, gather_order, importance_order


def layout_of(grain, outputs, fan_in, kin, kout, groups=1):
    return GroupLayout("layer", grain, groups * outputs, fan_in, groups, kin, kout)


def kept(energy, order, blocks, layout):
    scores = _sums(energy.view(layout.conv_groups, -1, layout.fan_in), order, layout)
    return float((scores * project(scores, blocks, layout)).sum())


def test_importance_sorts():
    order = importance_order(torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]]))
    assert order.tolist() == [[1, 2, 0], [2, 0, 1]]


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_fms_that_the_same_outputs_read_come_together(grain):
    # Outputs 0 and 1 read FMs 0 and 2, outputs 2 and 3 read FMs 1 and 3.
    energy = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2 + [[0.0, 1.0, 0.0, 1.0]] * 2).double()
    layout = layout_of(grain, 4, 4, kin=2, kout=2)
    as_it_is = torch.arange(4).unsqueeze(0)
    # A hair of difference tells the first mask where to begin.
    order = gather_order(energy + 0.01 * torch.tensor([3.0, 2.0, 1.0, 0.0]), 2, layout)
    assert kept(energy, as_it_is, 2, layout) == 4
    assert kept(energy, order, 2, layout) == 8
    assert sorted(order[0].tolist()) == [0, 1, 2, 3]


@given(
    grain=st.sampled_from(["crossbar", "column"]),
    fan_in=st.integers(2, 5),
    kin=st.integers(1, 3),
    seed=st.integers(0, 100),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
def test_never_worse_than_as_it_is_and_never_above_the_best_of_all(grain, fan_in, kin, seed, data):
    layout = layout_of(grain, 4, fan_in, kin=min(kin, fan_in), kout=2)
    energy = torch.rand(4, fan_in, generator=torch.Generator().manual_seed(seed)).double() ** 3
    blocks = data.draw(st.integers(layout.fewest_blocks, layout.blocks))
    order = gather_order(energy, blocks, layout)
    ours = kept(energy, order, blocks, layout)
    assert ours >= kept(energy, torch.arange(fan_in).unsqueeze(0), blocks, layout) - 1e-9
    best = max(
        kept(energy, torch.tensor([every]), blocks, layout)
        for every in itertools.permutations(range(fan_in))
    )
    assert ours <= best + 1e-9


def test_each_convolution_group_has_an_order_of_its_own_and_wide_layers_are_sorted(monkeypatch):
    layout = layout_of("column", 4, 6, kin=2, kout=2, groups=2)
    energy = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) ** 4
    order = gather_order(energy, 8, layout)
    assert [sorted(row) for row in order.tolist()] == [list(range(6))] * 2
    assert kept(energy.double(), order, 8, layout) > kept(
        energy.double(), torch.arange(6).expand(2, 6), 8, layout
    )
    monkeypatch.setattr("crosspruner.sparsity.reorder.MOST_FMS", 5)
    expected = importance_order(energy.double().view(2, 4, 6).sum(1))
    assert torch.equal(gather_order(energy, 8, layout), expected)
