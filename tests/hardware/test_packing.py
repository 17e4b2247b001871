import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspruner.hardware import count_blocks, pack


def fms(groups, outputs):
    return torch.arange(groups * outputs).view(groups, outputs)


def bools(rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_dense_blocks_are_listed_by_input_group_then_output_group():
    packing = pack(None, "column", 2, fms(1, 7), 4)
    assert packing.block_input.tolist() == [0, 0, 1, 1]
    assert packing.block_outputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, -1]] * 2
    assert packing.block_group.tolist() == [0, 1, 0, 1]


def test_crossbar_grain_keeps_whole_blocks():
    mask = bools([[1, 0], [1, 1]])
    packing = pack(mask, "crossbar", 2, fms(1, 7), 4)
    assert packing.block_input.tolist() == [0, 0, 1]
    assert packing.block_outputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, -1], [4, 5, 6, -1]]
    assert count_blocks(mask, "crossbar", 1, 4) == 3


def test_column_grain_recombines_columns_of_one_input_group():
    # Group 0 keeps 5 of 7 columns (2 blocks), group 1 keeps 1, 4 and 6 (one block).
    mask = bools([[1, 0], [1, 1], [0, 0], [1, 0], [1, 1], [0, 0], [1, 1]])
    packing = pack(mask, "column", 2, fms(1, 7), 4)
    assert packing.block_input.tolist() == [0, 0, 1]
    assert packing.block_outputs.tolist() == [[0, 1, 3, 4], [6, -1, -1, -1], [1, 4, 6, -1]]
    assert packing.block_group is None
    assert count_blocks(mask, "column", 1, 4) == 3


def test_columns_follow_the_output_order():
    mask = bools([[1], [0], [1], [1]])
    packing = pack(mask, "column", 1, torch.tensor([[3, 1, 0, 2]]), 2)
    assert packing.block_outputs.tolist() == [[3, 0], [2, -1]]


def test_conv_groups_never_share_a_crossbar():
    mask = bools([[1], [0], [0], [1]])
    packing = pack(mask, "column", 1, fms(2, 2), 4)
    assert packing.block_input.tolist() == [0, 1]
    assert packing.block_outputs.tolist() == [[0, -1, -1, -1], [3, -1, -1, -1]]


def test_nothing_kept_takes_nothing():
    packing = pack(torch.zeros(7, 2, dtype=torch.bool), "column", 2, fms(1, 7), 4)
    assert len(packing) == 0
    assert packing.block_outputs.shape == (0, 4)


@given(st.data())
def test_packing_lists_each_kept_column_once_in_the_fewest_blocks(data):
    groups, outputs = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    inputs, kout = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    mask = torch.rand(groups * outputs, inputs, generator=generator) < data.draw(st.floats(0, 1))
    packing = pack(mask, "column", inputs, fms(groups, outputs), kout)
    listed = [
        (out, group % inputs)
        for group, columns in zip(
            packing.block_input.tolist(), packing.block_outputs.tolist(), strict=True
        )
        for out in columns
        if out >= 0
    ]
    assert sorted(listed) == sorted(map(tuple, mask.nonzero().tolist()))
    fewest = sum(
        -(-int(mask[g * outputs : (g + 1) * outputs, p].sum()) // kout)
        for g in range(groups)
        for p in range(inputs)
    )
    assert len(packing) == fewest == count_blocks(mask, "column", groups, kout)
