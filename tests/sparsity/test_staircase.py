"""The staircase of a layer: by hand, against the counter of crossbars, and its edges."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.sparsity import GroupLayout
from crosspruner.sparsity.staircase import edge_mask, profile


def layout(outputs, inputs, grain="column", kin=1, kout=2, conv_groups=1):
    return GroupLayout("layer", grain, outputs, inputs, conv_groups, kin, kout)


def test_by_hand():
    scores = torch.tensor([[9.0, 1.0], [8.0, 7.0], [3.0, 2.0], [6.0, 4.0]])  # 4 outputs, 2 groups
    order, taken = profile(scores, layout(4, 2))
    # the best group of each output first: 9, 8, 6, 3, then 7, 4, 2, 1
    assert order.tolist() == [0, 2, 6, 4, 3, 7, 5, 1]
    assert taken.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    # three crossbars hold six columns
    expected = [[True, False], [True, True], [True, False], [True, True]]
    assert edge_mask(scores, 3, layout(4, 2)).tolist() == expected


def test_free_slots_are_refilled_with_the_best_columns():
    # 3 outputs, Kout 2: outputs 0 and 1 read group 0, output 2 reads group 1 alone
    scores = torch.tensor([[9.0, 5.0], [8.0, 6.0], [1.0, 7.0]])
    mask = edge_mask(scores, 2, layout(3, 2))
    assert mask.tolist() == [[True, False], [True, True], [False, True]]


def test_outputs_of_two_sections_share_no_crossbar():
    # 4 outputs in sections of 2, Kout 2: the columns of group 0 take a crossbar of each section
    one = GroupLayout("qkv", "column", 4, 2, 1, 1, 2, sections=2)
    scores = torch.tensor([[9.0, 1.0], [2.0, 7.0], [8.0, 3.0], [6.0, 4.0]])
    order, taken = profile(scores, one)
    assert order.tolist() == [0, 4, 3, 6, 7, 5, 2, 1]
    assert taken.tolist() == [1, 2, 3, 3, 4, 4, 4, 4]
    expected = [[True, True], [True, True], [True, False], [True, False]]  # 1 and 2 are free
    assert edge_mask(scores, 3, one).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from(["column", "crossbar"]),
    st.sampled_from([(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 2, 1), (1, 1, 3)]),
)
def test_the_profile_is_what_the_counter_says_and_edges_are_exact(seed, kout, grain, lanes):
    generator = torch.Generator().manual_seed(seed)
    conv_groups, bundle, sections = lanes
    outputs = 4 * conv_groups * sections
    one = GroupLayout(
        *("layer", grain, outputs, 3, conv_groups, 1, kout * bundle),
        bundle=bundle,
        sections=sections,
    )
    scores = torch.rand(one.shape, generator=generator)
    order, taken = profile(scores, one)
    for n in range(1, len(order) + 1):
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[order[:n]] = True
        assert one.blocks_of(mask.view(scores.shape)) == int(taken[n - 1])
    for blocks in range(int(taken[one.units - 1]), one.blocks + 1):
        mask = edge_mask(scores, blocks, one)
        assert one.blocks_of(mask) == blocks
        assert bool(mask.any(dim=1).all())
        edge = torch.zeros(scores.numel(), dtype=torch.bool)
        edge[order[taken <= blocks]] = True
        assert bool((mask | ~edge.view(scores.shape)).all())  # refilled, nothing taken away
