"""Groups of weights: by hand, then against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspruner.errors import ConfigError
from crosspruner.sparsity import GroupLayout


def layout(grain="crossbar", out_channels=7, fan_in=5, conv_groups=1, kin=2, kout=3, **given):
    return GroupLayout("layer", grain, out_channels, fan_in, conv_groups, kin, kout, **given)


def test_five_inputs_and_seven_outputs_on_two_by_three_blocks():
    blocks = layout()
    assert (blocks.input_groups, blocks.output_groups, blocks.shape) == (3, 3, (3, 3))
    assert (blocks.blocks, blocks.fewest_blocks) == (9, 3)
    assert blocks.unit_of_output.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert blocks.group_of_input.tolist() == [[0, 0, 1, 1, 2]]
    columns = layout("column")
    assert columns.shape == (7, 3)
    assert columns.unit_of_output.tolist() == list(range(7))


def test_expand_spreads_one_value_over_a_block():
    mask = torch.tensor([[1, 0], [0, 1]])
    spread = layout(out_channels=4, fan_in=3, kin=2, kout=2).expand(mask)
    assert spread.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_reordered_inputs_and_outputs_share_their_new_neighbours():
    blocks = layout(
        out_channels=4,
        fan_in=4,
        kin=2,
        kout=2,
        input_order=torch.tensor([[3, 0, 1, 2]]),
        output_order=torch.tensor([[0, 2, 1, 3]]),
    )
    assert blocks.group_of_input.tolist() == [[0, 1, 1, 0]]
    assert blocks.unit_of_output.tolist() == [0, 1, 0, 1]


def test_convolution_groups_have_units_of_their_own():
    blocks = layout(out_channels=6, fan_in=2, conv_groups=2, kin=1, kout=2)
    assert blocks.shape == (4, 2)
    assert blocks.unit_of_output.tolist() == [0, 0, 1, 2, 2, 3]


def test_packed_columns_count_by_the_crossbar():
    columns = layout("column", crossbars_per_block=2)
    mask = torch.zeros(7, 3, dtype=torch.bool)
    mask[:4, 0] = True  # four columns of three per crossbar: two crossbars
    mask[6, 1] = True
    assert columns.blocks_of(mask) == 3
    assert columns.crossbars(mask) == 6


def test_an_unknown_grain_is_refused():
    with pytest.raises(ConfigError, match="use one of crossbar, column"):
        layout("row")


sizes = st.integers(1, 6)


@given(
    st.sampled_from(["crossbar", "column"]),
    sizes,
    sizes,
    st.integers(1, 3),
    sizes,
    sizes,
    st.data(),
)
def test_sums_and_spreads_equal_loops(grain, outputs, fan_in, conv_groups, kin, kout, data):
    kin, kout = min(kin, fan_in), min(kout, outputs)
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    orders = [
        torch.stack([torch.randperm(n, generator=generator) for _ in range(conv_groups)])
        for n in (fan_in, outputs)
    ]
    groups = layout(
        grain,
        outputs * conv_groups,
        fan_in,
        conv_groups,
        kin,
        kout,
        input_order=orders[0],
        output_order=orders[1],
    )
    values = torch.randint(9, (outputs * conv_groups, fan_in, 2, 1), generator=generator)
    expected = torch.zeros(groups.shape, dtype=torch.long)
    spread = torch.empty(outputs * conv_groups, fan_in, dtype=torch.long)
    marks = torch.arange(expected.numel()).view(groups.shape)
    for c in range(conv_groups):
        for place, o in enumerate(orders[1][c].tolist()):
            unit = (
                c * groups.output_groups + place // kout if grain == "crossbar" else c * outputs + o
            )
            for spot, i in enumerate(orders[0][c].tolist()):
                expected[unit, spot // kin] += values[c * outputs + o, i].sum()
                spread[c * outputs + o, i] = marks[unit, spot // kin]
    assert torch.equal(groups.sum_by_group(values), expected)
    assert torch.equal(groups.expand(marks), spread)
    assert groups.expand_like(marks, values).shape == (outputs * conv_groups, fan_in, 1, 1)
