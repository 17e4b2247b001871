"""Projection onto a crossbar budget: by hand, as properties, and against all masks there are."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspruner.errors import BudgetError
from crosspruner.sparsity import GroupLayout, project


def layout(grain, out_channels, inputs, kout, conv_groups=1):
    return GroupLayout("layer", grain, out_channels, inputs, conv_groups, 1, kout)


def test_the_best_blocks_stay_and_every_output_keeps_one():
    scores = torch.tensor([[9.0, 8.0, 7.0], [0.1, 0.3, 0.2]])
    mask = project(scores, 3, layout("crossbar", 2, 3, 1))
    assert mask.int().tolist() == [[1, 1, 0], [0, 1, 0]]


def test_columns_of_one_input_share_crossbars_two_at_a_time():
    # input 0: 9+8, 1+0; input 1: 5+5, 4+4. Three crossbars: 17, 10 and 8.
    scores = torch.tensor([[9.0, 5.0], [8.0, 5.0], [1.0, 4.0], [0.0, 4.0]])
    mask = project(scores, 3, layout("column", 4, 2, 2))
    assert mask.int().tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]]


def test_a_short_crossbar_is_worth_the_columns_it_holds():
    # Two crossbars of up to four: 10 + 10 + 10 + 10 and 6 + 5 + 5 + 5 keep more than 40 and a 9.
    scores = torch.tensor([[10.0, 5.0], [10.0, 5.0], [10.0, 5.0], [10.0, 5.0], [9.0, 6.0]])
    mask = project(scores, 2, layout("column", 5, 2, 4))
    assert mask.int().tolist() == [[1, 1], [1, 1], [1, 1], [1, 0], [0, 1]]


def test_a_paid_crossbar_leaves_no_slot_empty():
    scores = torch.tensor([[9.0, 0.0], [8.0, 0.0], [7.0, 0.0]])
    mask = project(scores, 3, layout("column", 3, 2, 2))
    assert int(mask.sum()) == 5  # three of input 0 (two crossbars), two of input 1 (one)


def test_an_output_left_without_input_is_given_one():
    # The best single crossbar of two columns for outputs 0 and 1 is input 0, twice over.
    scores = torch.tensor([[9.0, 8.0], [9.0, 8.0], [0.0, 0.1], [0.0, 0.1]])
    mask = project(scores, 2, layout("column", 4, 2, 2))
    assert mask.any(dim=1).all()
    assert layout("column", 4, 2, 2).blocks_of(mask) == 2


@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("blocks", [1, 5])
def test_a_budget_out_of_reach_is_refused(grain, blocks):
    with pytest.raises(BudgetError, match=f"{blocks} blocks asked for, 2 to 4 can be kept"):
        project(torch.ones(2, 2), blocks, layout(grain, 2, 2, 1))


@given(
    st.sampled_from(["crossbar", "column"]),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**16),
    st.floats(0, 1),
)
def test_every_budget_is_met_exactly(grain, outputs, inputs, kout, conv_groups, seed, share):
    groups = layout(grain, outputs * conv_groups, inputs, min(kout, outputs), conv_groups)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, groups.shape, generator=generator).float()
    span = groups.blocks - groups.fewest_blocks
    blocks = groups.fewest_blocks + round(share * span)
    mask = project(scores, blocks, groups)
    assert groups.blocks_of(mask) == blocks
    assert mask.any(dim=1).all()
    if grain == "column":  # full crossbars, or all columns of the input group
        columns = mask.view(conv_groups, outputs, inputs).sum(dim=1)
        assert ((columns % groups.kout == 0) | (columns == outputs)).all()


@given(
    st.sampled_from(["crossbar", "column"]),
    st.integers(2, 4),
    st.integers(2, 3),
    st.integers(1, 3),
    st.integers(0, 2**16),
    st.data(),
)
def test_no_mask_of_the_same_budget_keeps_more(grain, outputs, inputs, kout, seed, data):
    groups = layout(grain, outputs, inputs, min(kout, outputs))
    scores = torch.rand(groups.shape, generator=torch.Generator().manual_seed(seed))
    blocks = data.draw(st.integers(groups.fewest_blocks, groups.blocks))
    mask = project(scores, blocks, groups)
    rivals = torch.tensor(list(product([False, True], repeat=scores.numel())))
    rivals = rivals.view(-1, *groups.shape)
    columns = rivals.sum(dim=1)
    paid = rivals.sum(dim=(1, 2)) if grain == "crossbar" else (-(-columns // groups.kout)).sum(1)
    kept = (rivals * scores).sum(dim=(1, 2))
    fits, covered = paid <= blocks, rivals.any(dim=2).all(dim=1)
    free, best = float(kept[fits].max()), float(kept[fits & covered].max())
    got = float(scores[mask].sum())
    assert got <= best + 1e-5
    if grain == "crossbar" or best == free:
        assert got == pytest.approx(best, abs=1e-5)
