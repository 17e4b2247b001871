import re

import pytest

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar


@pytest.mark.parametrize(
    ("text", "size"),
    [("256x256", (256, 256)), ("128x64", (128, 64)), ("32", (32, 32)), (" 8 X 4 ", (8, 4))],
)
def test_parse_reads_rows_then_cols(text, size):
    crossbar = Crossbar.parse(text)
    assert (crossbar.rows, crossbar.cols) == size


def test_str_is_the_size_and_parses_back():
    assert str(Crossbar(128, 64)) == "128x64"
    assert Crossbar.parse(str(Crossbar(128, 64))) == Crossbar(128, 64)


def test_parse_leaves_a_crossbar_as_it_is():
    crossbar = Crossbar(8, 8, cell_bits=2)
    assert Crossbar.parse(crossbar) is crossbar


@pytest.mark.parametrize("text", ["0x256", "256x0", "256*256", "", "x", "-4x4", "1.5x2", "axb"])
def test_parse_rejects_what_is_not_a_size(text):
    with pytest.raises(ConfigError, match="crossbar=256x256"):
        Crossbar.parse(text)


@pytest.mark.parametrize(
    ("weight_bits", "cell_bits", "differential", "cells"),
    [(8, 8, False, 1), (8, 8, True, 2), (8, 2, False, 4), (8, 3, False, 3), (8, 1, True, 16)],
)
def test_cells_per_weight(weight_bits, cell_bits, differential, cells):
    crossbar = Crossbar(64, 64, weight_bits, cell_bits, differential)
    assert crossbar.cells_per_weight == cells
    assert crossbar.weight_columns == 64 // cells


def test_a_weight_wider_than_the_crossbar_is_refused():
    with pytest.raises(ConfigError, match=re.escape("takes 16 columns")):
        Crossbar(8, 8, weight_bits=8, cell_bits=1, differential=True)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8"])
def test_fields_must_be_positive_whole_numbers(value):
    with pytest.raises(ConfigError, match="rows="):
        Crossbar(value, 8)
