"""Products of patches at all positions by lags, against the patches themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from crosspruner.pruning.kernel_axes import Axis
from crosspruner.pruning.lag_sums import LagSums
from crosspruner.pruning.moment_sums import MomentSums
from crosspruner.sparsity import GroupLayout


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums_of(down, across, point, *batches):
    """What some batches (x, y) of maps about no point add up to: second, cross, mean."""
    sums = LagSums(down, across, point)
    cross, mean = 0.0, 0.0
    for x, y in batches:
        added = sums.add(x - point[:, :, None, None, None], y)
        cross, mean = cross + added[0], mean + added[1]
    return sums.second(), cross, mean


def patches(down, across, x):
    """(B, d, n * positions) of maps (B, FMs, n, H, W), d by FM and then by kernel place."""
    padded = F.pad(x, (across.before, across.after, down.before, down.after))
    found = F.unfold(
        padded.transpose(1, 2).flatten(0, 1),
        (down.places, across.places),
        dilation=(down.dilation, across.dilation),
    )
    return found.unflatten(0, (len(x), -1)).transpose(1, 2).flatten(2)


def test_two_places_by_hand():
    """The row 1 2 3 under a kernel of two pixels, without padding: the patches 1 2 and 2 3."""
    down, across = Axis(1, 1, 1, 1, 0), Axis(3, 2, 2, 1, 0)
    x = torch.tensor([1.0, 2.0, 3.0]).double().view(1, 1, 1, 1, 3)
    y = torch.tensor([10.0, 20.0]).double().view(1, 1, 1, 1, 2)
    second, cross, mean = sums_of(down, across, torch.zeros(1, 1), (x, y))
    assert second[0].tolist() == [[5.0, 8.0], [8.0, 13.0]]
    assert cross[0].flatten().tolist() == [50.0, 80.0]
    assert mean[0].tolist() == [3.0, 5.0]


def test_padding_is_at_minus_the_point():
    """Padded on both sides and about 1: the patches -1 0, 0 1, 1 2 and 2 -1."""
    down, across = Axis(1, 1, 1, 1, 0), Axis(3, 4, 2, 1, 1)
    assert across.after == 1
    x = torch.tensor([1.0, 2.0, 3.0]).double().view(1, 1, 1, 1, 3)
    y = torch.tensor([1.0, 10.0, 100.0, 1000.0]).double().view(1, 1, 1, 1, 4)
    second, cross, mean = sums_of(down, across, torch.ones(1, 1), (x, y))
    assert second[0].tolist() == [[6.0, 0.0], [0.0, 6.0]]
    assert cross[0].flatten().tolist() == [2099.0, -790.0]
    assert mean[0].tolist() == [2.0, 2.0]


def test_a_kernel_of_nine_places_has_nine_sums_at_the_border_and_twenty_others():
    """Lag 0 alone differs along both borders, eight lags do along none of them."""
    axis = Axis(8, 8, 3, 1, 1)
    assert axis.pieces(0) == [(0, 1), (1, 7), (7, 8)]
    assert axis.pieces(1) == [(0, 7)]
    assert axis.pieces(-2) == [(2, 8)]
    sums = LagSums(axis, axis, torch.zeros(1, 1))
    pieces = [len(list(sums._pieces_of(lag))) for lag in sums._lags()]
    assert sorted(pieces) == [1] * 8 + [3] * 4 + [9]


def axes():
    """One axis: size, places, dilation, padding before and after; at least one position."""

    def build(draw):
        size, places, dilation, before, after = draw
        reach = dilation * (places - 1)
        before, after = min(before, reach), min(after, reach)
        return size, size + before + after - reach, places, dilation, before

    sizes, places, dilations = st.integers(1, 7), st.integers(1, 4), st.integers(1, 3)
    whole = st.tuples(sizes, places, dilations, st.integers(0, 6), st.integers(0, 6))
    return whole.map(build).filter(lambda axis: axis[1] > 0).map(lambda axis: Axis(*axis))


@given(axes(), axes(), st.integers(1, 2), st.integers(1, 3), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_sums_are_those_of_the_patches(down, across, bands, fms, seed):
    point = normal(bands, fms, seed=seed + 1)
    batches, rows, outputs = [], [], []
    for images in (2, 1):
        x = normal(bands, fms, images, down.size, across.size, seed=seed + images)
        y = normal(bands, 2, images, down.out, across.out, seed=seed + 7 + images)
        batches.append((x, y))
        rows.append(patches(down, across, x))
        outputs.append(y.flatten(2))
    row, output = torch.cat(rows, 2), torch.cat(outputs, 2)
    row = row - point.repeat_interleave(row.shape[1] // fms, 1).unsqueeze(2)
    if not LagSums.serve(down, across):
        assert down.places * across.places == 1
        return
    second, cross, mean = sums_of(down, across, point, *batches)
    torch.testing.assert_close(second, row @ row.mT)
    torch.testing.assert_close(cross, row @ output.mT)
    torch.testing.assert_close(mean, row.sum(2))


@given(axes())
@settings(max_examples=100, deadline=None)
def test_what_a_place_reads_is_whole_pieces(axis):
    for lag in range(1 - axis.places, axis.places):
        pieces = axis.pieces(lag)
        assert all(0 <= start < stop <= axis.size for start, stop in pieces)
        for place in range(max(0, -lag), axis.places - max(0, lag)):
            start, stop = axis.pixels(place, lag)
            read = [p + place * axis.dilation - axis.before for p in range(axis.out)]
            shift = lag * axis.dilation
            both = [q for q in read if 0 <= q < axis.size and 0 <= q + shift < axis.size]
            assert list(range(start, stop)) == both
            assert sum(b - a for a, b in pieces if start <= a and b <= stop) == stop - start


def refuse(*_):
    raise AssertionError


CONVOLUTIONS = {
    "plain": (nn.Conv2d(6, 4, 3, padding=1), 1, 2**30),
    "not padded": (nn.Conv2d(6, 4, 3), 2, 2**30),
    "dilated, padded unevenly": (nn.Conv2d(6, 4, (2, 3), dilation=2, padding="same"), 2, 2**30),
    "groups": (nn.Conv2d(6, 4, 3, padding=1, groups=2), 2, 2**30),
    "cut into runs": (nn.Conv2d(6, 4, 3, padding=1), 2, 8 * 18 * 18),
    "one-dimensional": (nn.Conv1d(6, 4, 3, padding=1), 2, 2**30),
    "reflected": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), 2, 2**30),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1), 2, 2**30),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("reordered", [False, True])
def test_moments_are_those_of_the_patches(name, reordered, monkeypatch):
    layer, kin, max_bytes = CONVOLUTIONS[name]
    layer, fan_in = layer.double(), 6 // layer.groups
    order = None
    if reordered:
        order = torch.stack([normal(fan_in, seed=g).argsort() for g in range(layer.groups)])
    layout = GroupLayout("layer", "column", 4, fan_in, layer.groups, kin, 2, input_order=order)
    shape = (6, 9) if isinstance(layer, nn.Conv1d) else (6, 5, 7)
    batches = [normal(n, *shape, seed=n) + 3 for n in (4, 5)]

    def collect():
        sums = MomentSums(layer, layout, max_bytes)
        for batch in batches:
            sums.update(batch, layer(batch).detach())
        other = MomentSums(layer, layout, max_bytes)
        other.update(batches[0] - 1, layer(batches[1][:4]).detach())
        sums.merge(other)
        return sums

    with monkeypatch.context() as patch:
        patch.setattr(MomentSums, "_add_patches", refuse)
        by_lags = collect()
    assert by_lags.lags
    monkeypatch.setattr(LagSums, "serve", lambda *_: False)
    by_patches = collect()
    assert not by_patches.lags
    ours, theirs = by_lags.average(), by_patches.average()
    assert ours.samples == theirs.samples
    for field in ("second", "cross", "energy", "mean_in", "mean_out"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field))
    torch.testing.assert_close(ours.centred().second, theirs.centred().second)


def test_strides_drawn_positions_and_single_pixels_go_patch_by_patch(monkeypatch):
    monkeypatch.setattr(MomentSums, "_add_lags", refuse)
    for layer, positions in (
        (nn.Conv2d(4, 2, 3, stride=2, padding=1), None),
        (nn.Conv2d(4, 2, 3, padding=1), 8),
        (nn.Conv2d(4, 2, 1), None),
    ):
        layout = GroupLayout("layer", "column", 2, 4, 1, 1, 1)
        sums = MomentSums(layer, layout, positions=positions)
        images = normal(9, 4, 6, 6).float()
        sums.update(images, layer(images).detach())
        assert sums.average().samples == 9 * (positions or layer(images[:1])[0, 0].numel())


def test_images_of_several_sizes_add_up():
    layer = nn.Conv2d(3, 2, 3, padding=1, bias=False).double()
    layout = GroupLayout("layer", "column", 2, 3, 1, 1, 1)
    sums = MomentSums(layer, layout)
    rows = []
    for size in (4, 6):
        images = normal(8, 3, size, size, seed=size)
        sums.update(images, layer(images).detach())
        rows.append(F.unfold(images, 3, padding=1).transpose(1, 2).flatten(0, 1))
    assert len(sums.lags) == 2
    row = torch.cat(rows)
    torch.testing.assert_close(sums.average().second[0], row.T @ row / len(row))


def test_few_patches_are_summed_once_they_are_many():
    layer = nn.Conv2d(4, 2, 3, padding=1, bias=False).double()
    sums = MomentSums(layer, GroupLayout("layer", "column", 2, 4, 1, 1, 1))
    images = normal(6, 4, 3, 3)
    for batch in images.split(1):  # nine patches each, 36 rows
        sums.update(batch, layer(batch).detach())
    assert sums.patches is None
    assert sums.lags
    row = F.unfold(images, 3, padding=1).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(sums.average().second[0], row.T @ row / len(row))
