"""Every expected number here was worked out by hand from the mapping's definition."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import ConfigError, MappingError
from crosspruner.hardware import Crossbar, LayerGeometry, MappingSpec, choose_tiling


def conv(in_channels, out_channels, size, kernel=3, stride=1, padding=1, dilation=1, groups=1):
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return LayerGeometry(
        "conv",
        "conv",
        in_channels,
        out_channels,
        (kernel, kernel),
        (stride, stride),
        (padding, padding),
        (dilation, dilation),
        groups,
        (size, size),
        (out, out),
    )


def linear(inputs, outputs):
    return LayerGeometry("fc", "linear", inputs, outputs)


def tile(geometry, crossbar, spec="semifolded"):
    return choose_tiling(geometry, Crossbar.parse(crossbar), spec)


def compute(geometry, tiling):
    return geometry.conv_groups * tiling.blocks * tiling.crossbars_per_block


def test_five_by_seven_on_four_by_four():
    tiling = tile(linear(5, 7), "4x4")
    assert (tiling.kin, tiling.kout) == (4, 4)
    assert (tiling.input_groups, tiling.output_groups) == (2, 2)  # 4 + 1 rows, 4 + 3 columns
    assert compute(linear(5, 7), tiling) == 4
    assert tiling.phases == 1


def test_cuts_are_full_tiles_then_the_rest():
    tiling = tile(linear(513, 10), "256x256")
    assert (tiling.kin, tiling.input_groups) == (256, 3)


# 8 -> 8 FMs of 8x8, kernel 3x3, padding 1, on 16x16.
# folded: 9 rows per FM, so 1 FM per crossbar and all 8 outputs: 8 crossbars.
# semifolded: w=2 needs 3*4=12 rows per FM and 8*2 columns: 8 groups x 4 slices = 32 (w=1: 64, w=3:
#   5 outputs fit, 8*2*3 = 48).
# unfolded: 1x2 and 2x2 patches both come to 256; 2x2 has fewer slices.
# one kernel row per crossbar: w=2 needs 4 rows per FM: 2 groups x 4 slices x 3 rows = 24.
@pytest.mark.parametrize(
    ("spec", "kin", "kout", "window", "slices", "splits", "crossbars", "phases"),
    [
        (MappingSpec("folded"), 1, 8, (1, 1), 1, 1, 8, 64),
        (MappingSpec("semifolded"), 1, 8, (1, 2), 4, 1, 32, 8),
        (MappingSpec("unfolded"), 1, 4, (2, 2), 16, 1, 256, 1),
        (MappingSpec("semifolded", "one"), 4, 8, (1, 2), 4, 3, 24, 8),
    ],
    ids=["folded", "semifolded", "unfolded", "one_kernel_row"],
)
def test_small_convolution(spec, kin, kout, window, slices, splits, crossbars, phases):
    geometry = conv(8, 8, 8)
    tiling = tile(geometry, "16x16", spec)
    assert (tiling.kin, tiling.kout, tiling.window) == (kin, kout, window)
    assert (tiling.slices, tiling.row_splits) == (slices, splits)
    assert compute(geometry, tiling) == crossbars
    assert tiling.phases == phases


@pytest.mark.parametrize(("width", "kin"), [(32, 8), (16, 16)])
def test_liang2018_preset_gives_the_papers_kin_and_kout(width, kin):
    spec = MappingSpec.of("liang2018")
    crossbar = spec.crossbar(Crossbar(256, 256))
    tiling = choose_tiling(conv(128, 128, width), crossbar, spec)
    assert (tiling.kin, tiling.kout, tiling.slices, tiling.row_splits) == (kin, 4, 1, 3)


def test_liang2018_preset_fills_linear_layers():
    spec = MappingSpec.of("liang2018")
    tiling = choose_tiling(linear(1000, 1000), spec.crossbar(Crossbar(256, 256)), spec)
    assert (tiling.kin, tiling.kout) == (256, 128)


def test_kernel_taller_than_the_crossbar_splits_the_fm():
    # 7x7 = 49 rows on 16: 16 + 16 + 16 + 1.
    for name in ("folded", "semifolded", "unfolded"):
        tiling = tile(conv(3, 4, 7, kernel=7, padding=0), "16x16", name)
        assert (tiling.kin, tiling.input_groups, tiling.row_splits) == (1, 3, 4)


def test_one_kernel_row_wider_than_the_crossbar_is_split_again():
    # Each of 7 kernel rows takes 7 input columns: 4 + 3 on 4 rows.
    tiling = tile(conv(1, 1, 7, kernel=7, padding=0), "4x4", MappingSpec("semifolded", "one"))
    assert tiling.row_splits == 7 * 2


def test_fm_wider_than_the_crossbar_is_sliced():
    # 1x1 kernel, 100 wide on 32x32: 4 slices at least, and the narrowest window that does it.
    geometry = conv(1, 1, 100, kernel=1, padding=0)
    tiling = tile(geometry, "32x32")
    assert (tiling.window, tiling.slices, compute(geometry, tiling)) == ((1, 25), 4, 4)


def test_window_never_takes_more_rows_than_the_fm_has():
    # w=8 spans 10 columns, 2 of them padding: 3 * 8 rows, so 2 FMs fit in 48.
    tiling = tile(conv(2, 1, 8), "48x8")
    assert (tiling.window, tiling.fm_rows, tiling.kin) == ((1, 8), 24, 2)


def test_stride_and_dilation_widen_the_window():
    # w outputs at stride 2, dilation 2 span (w-1)*2 + 5 columns.
    geometry = conv(1, 1, 20, stride=2, padding=0, dilation=2)
    tiling = tile(geometry, "27x3")
    assert (tiling.window, tiling.fm_rows) == ((1, 3), 27)


def test_depthwise_has_one_matrix_per_channel():
    geometry = conv(6, 6, 5, groups=6)
    tiling = tile(geometry, "64x64", "folded")
    assert (tiling.input_groups, tiling.output_groups) == (1, 1)
    assert compute(geometry, tiling) == 6


def test_grouped_layer_counts_groups_apart():
    # 2 groups of 6 -> 4 FMs, 9 rows each, 27 rows: 3 FMs per crossbar.
    geometry = conv(12, 8, 5, groups=2)
    tiling = tile(geometry, "27x64", "folded")
    assert (tiling.kin, tiling.kout, tiling.input_groups) == (3, 4, 2)
    assert compute(geometry, tiling) == 4


def test_cells_per_weight_leaves_fewer_outputs():
    crossbar = Crossbar(16, 16, weight_bits=8, cell_bits=4, differential=True)
    assert choose_tiling(linear(16, 16), crossbar, "folded").kout == 4


def test_given_kin_and_kout_per_model_and_per_layer():
    spec = MappingSpec("folded", kin=2, kout=4, layers={"fc": {"kout": 8}})
    tiling = tile(linear(16, 16), "16x16", spec)
    assert (tiling.kin, tiling.kout, tiling.input_groups, tiling.output_groups) == (2, 8, 8, 2)
    assert tile(conv(3, 16, 4), "32x16", spec).kout == 4


def test_given_sizes_are_clipped_to_the_layer():
    tiling = tile(linear(3, 2), "16x16", MappingSpec("folded", kin=8, kout=8))
    assert (tiling.kin, tiling.kout) == (3, 2)


def test_given_kout_narrows_the_window():
    tiling = tile(conv(8, 8, 8), "64x16", MappingSpec("semifolded", kout=8))
    assert (tiling.kout, tiling.window) == (8, (1, 2))


@pytest.mark.parametrize("spec", [{"kin": 3}, {"kout": 17}, {"kin": 1, "kout": 17}])
def test_given_sizes_that_do_not_fit_are_refused_with_the_limits(spec):
    message = "an input FM takes 9 rows or more"
    with pytest.raises(MappingError, match=re.escape(message)) as caught:
        tile(conv(64, 64, 8), "18x16", MappingSpec("folded", **spec))
    assert "kin may be at most 2 and kout at most 16" in str(caught.value)
    over = "kin:2" if spec.get("kin") == 3 else "kout:16"
    assert f"mapping.layers={{conv:{{{over}}}}}" in str(caught.value)


def test_what_does_not_fit_is_named_as_it_was_typed():
    with pytest.raises(MappingError) as caught:
        tile(conv(16, 64, 8), "18x16", MappingSpec("folded", kin=1000))
    assert "conv: kin=1000 (16 are all that the layer has) does not fit" in str(caught.value)
    assert 'in Python MappingSpec(layers={"conv": {"kin": 2}})' in str(caught.value)


def test_kin_above_one_is_refused_where_one_fm_does_not_fit():
    with pytest.raises(MappingError, match="at most 1"):
        tile(conv(4, 4, 8), "8x8", MappingSpec("folded", kin=2))
    assert tile(conv(4, 4, 8), "8x8", MappingSpec("folded", kin=1)).row_splits == 2


def test_larger_crossbar_than_layer():
    tiling = tile(linear(1, 1), "512x512")
    assert (tiling.kin, tiling.kout, compute(linear(1, 1), tiling)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "folder"}, "mapping=folder: choose one of folded, semifolded, unfolded."),
        ({"kernel_rows": "two"}, "mapping.kernel_rows=two: choose one of all, one."),
        ({"kin": 0}, "mapping.kin=0: it must be a whole number of at least 1, or null."),
        ({"kout": 2.5}, "mapping.kout=2.5"),
        ({"layers": {"a": {"kn": 1}}}, "mapping.layers: a has ['kn']"),
        ({"layers": {"a": {"kin": -1}}}, "mapping.layers: a.kin=-1"),
    ],
)
def test_wrong_specs_say_what_is_allowed(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        MappingSpec(**fields)


def test_unknown_mapping_name_lists_the_presets_too():
    with pytest.raises(ConfigError, match="liang2018"):
        MappingSpec.of("im2col")


def cheapest(geometry, crossbar, name, kernel_rows):
    """Tries every window, Kin and Kout by the definition: (crossbars, slices, -Kin, -Kout)."""
    (kh, kw), (high, wide) = geometry.kernel, geometry.in_size
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    out_h, out_w = geometry.out_size
    found, split = [], []
    for h in range(1, out_h + 1) if name == "unfolded" else [1]:
        for w in range(1, out_w + 1) if name != "folded" else [1]:
            across = min(wide, (w - 1) * sw + (kw - 1) * dw + 1)
            tall, parts = (kh, 1) if kernel_rows == "all" else (1, kh)
            if name == "folded":
                rows, parts, slices = kh * kw, 1, 1
            elif name == "semifolded":
                rows, slices = tall * across, -(-out_w // w)
            else:
                rows = min(high, (h - 1) * sh + (tall - 1) * dh + 1) * across
                slices = -(-out_h // h) * -(-out_w // w)
            for kin in range(1, geometry.group_inputs + 1):
                for kout in range(1, geometry.group_outputs + 1):
                    if kout * h * w * crossbar.cells_per_weight > crossbar.cols:
                        continue
                    pieces = -(-rows // crossbar.rows)
                    groups = -(-geometry.group_inputs // kin) * -(-geometry.group_outputs // kout)
                    key = (groups * slices * parts * pieces, slices, -kin, -kout)
                    if kin * rows <= crossbar.rows:
                        found.append(key)
                    elif kin == 1:
                        split.append(key)
    return min(found or split)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_choice_is_the_cheapest_of_all(data):
    draw = data.draw
    small = st.integers(1, 3)
    kernel, stride, dilation, padding, extra = (
        (draw(small), draw(small)),
        (draw(small), draw(small)),
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        (draw(st.integers(0, 6)), draw(st.integers(0, 6))),
    )
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(max(n - 2 * p, 1) + e for n, p, e in zip(spans, padding, extra, strict=True))
    out = tuple(
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, spans, stride, strict=True)
    )
    geometry = LayerGeometry(
        "conv", "conv", draw(st.integers(1, 6)), draw(st.integers(1, 6)),
        kernel, stride, padding, dilation, 1, size, out,
    )  # fmt: skip
    crossbar = Crossbar(draw(st.integers(2, 60)), draw(st.integers(2, 40)))
    name = draw(st.sampled_from(["folded", "semifolded", "unfolded"]))
    kernel_rows = draw(st.sampled_from(["all", "one"])) if name != "folded" else "all"
    tiling = choose_tiling(geometry, crossbar, MappingSpec(name, kernel_rows))
    ours = (compute(geometry, tiling), tiling.slices, -tiling.kin, -tiling.kout)
    assert ours == cheapest(geometry, crossbar, name, kernel_rows)
