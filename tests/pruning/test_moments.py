"""Streaming moments against the unfolded input itself."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from crosspruner.errors import DataError
from crosspruner.pruning import symmetric
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.moment_sums import MomentSums
from crosspruner.sparsity import GroupLayout


@pytest.fixture(autouse=True, params=[3, 512], ids=["tiles", "one tile"])
def tile(request, monkeypatch):
    """Second moments in tiles of three rows, and whole."""
    monkeypatch.setattr(symmetric, "_TILE", request.param)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(layer, images):
    """Patches (G, n, fan_in, positions) and outputs (G, n, Cout / G), one row per position."""
    high, wide = layer.padding if not isinstance(layer.padding, str) else (0, 0)
    padded = F.pad(images, (wide, wide, high, high))
    columns = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    columns = columns.transpose(1, 2).flatten(0, 1)
    columns = columns.view(len(columns), layer.groups, layer.in_channels // layer.groups, -1)
    outputs = F.conv2d(
        *(images, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    )
    rows = outputs.detach().permute(0, 2, 3, 1).reshape(len(columns), layer.groups, -1)
    return columns.transpose(0, 1), rows.transpose(0, 1), outputs.detach()


def conv_layout(layer, kin, grain="column", kout=2, order=None):
    fan_in = layer.in_channels // layer.groups
    return GroupLayout(
        *("layer", grain, layer.out_channels, fan_in, layer.groups, kin, kout), input_order=order
    )


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    conv_groups=st.integers(1, 2),
    kin=st.integers(1, 3),
    reorder=st.booleans(),
)
def test_moments_are_those_of_the_patches(
    kernel, stride, padding, dilation, conv_groups, kin, reorder
):
    layer = nn.Conv2d(6, 4, kernel, stride, padding, dilation, conv_groups).double()
    fan_in = 6 // conv_groups
    order = torch.arange(fan_in).flip(0).expand(conv_groups, -1) if reorder else None
    layout = conv_layout(layer, min(kin, fan_in), order=order)
    images = normal(5, 6, 7, 6)
    sums = MomentSums(layer, layout)
    patches, rows, outputs = brute_force(layer, images)
    sums.update(images[:2], outputs[:2])
    sums.update(images[2:], outputs[2:])
    got = sums.average()
    if reorder:
        patches = patches.flip(2)
    flat = patches.flatten(2)
    live = flat.shape[2]
    torch.testing.assert_close(got.second[:, :live, :live], flat.mT @ flat / flat.shape[1])
    torch.testing.assert_close(got.cross[:, :live], flat.mT @ rows / flat.shape[1])
    torch.testing.assert_close(got.energy, rows.square().mean(1))
    torch.testing.assert_close(got.mean_in[:, :live], flat.mean(1))
    assert got.samples == flat.shape[1]
    assert not got.second[:, live:].any()  # the padding of a short last group
    centred = flat - flat.mean(1, keepdim=True)
    own = got.centred().second[:, :live, :live]
    torch.testing.assert_close(own, centred.mT @ centred / flat.shape[1])
    assert torch.equal(got.unplace(got.place(layer.weight), layer.weight), layer.weight)


@pytest.mark.parametrize("conv_groups", [1, 2])
def test_reordering_moments_is_collecting_them_in_that_order(conv_groups):
    layer = nn.Conv2d(10, 4, 2, groups=conv_groups, bias=False).double()
    fan_in = 10 // conv_groups
    order = torch.stack([torch.randperm(fan_in) for _ in range(conv_groups)])
    images = normal(3, 10, 4, 4)
    _, _, outputs = brute_force(layer, images)
    plain = MomentSums(layer, conv_layout(layer, 2))
    plain.update(images, outputs)
    sorted_ = MomentSums(layer, conv_layout(layer, 2, order=order))
    sorted_.update(images, outputs)
    got, expected = plain.average().reordered(order), sorted_.average()
    for name in ("second", "cross", "mean_in"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))
    importance = plain.average().importance(layer.weight)
    torch.testing.assert_close(expected.importance(layer.weight), importance)


def test_importance_is_the_energy_of_each_fm_at_the_output():
    layer = nn.Conv2d(3, 4, 2, bias=False).double()
    images = normal(6, 3, 5, 5)
    _, _, outputs = brute_force(layer, images)
    sums = MomentSums(layer, conv_layout(layer, 2))
    sums.update(images, outputs)
    for fm in range(3):
        alone = torch.zeros_like(images)
        alone[:, fm] = images[:, fm]
        energy = layer(alone).detach().square().sum(1).mean()
        assert float(sums.average().importance(layer.weight)[0, fm]) == pytest.approx(float(energy))


def test_float32_images_are_summed_to_nearly_float64():
    layer = nn.Linear(4, 3, bias=False)
    images = normal(4000, 4).float() + 3
    sums = MomentSums(layer, GroupLayout("layer", "column", 3, 4, 1, 2, 1))
    for part in images.split(100):
        sums.update(part, layer(part).detach())
    exact = images.double().T @ images.double() / 4000
    torch.testing.assert_close(sums.average().second[0], exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mean", [100.0, 3000.0])
@pytest.mark.parametrize("conv_groups", [1, 2])
@pytest.mark.parametrize("max_bytes", [2**30, 8 * 2 * 8 * 8], ids=["whole", "cut"])
def test_a_mean_far_above_the_variation_costs_it_no_digits(mean, conv_groups, max_bytes):
    layer = nn.Conv2d(10, 4, 2, groups=conv_groups, bias=False).double()
    fan_in = 10 // conv_groups
    order = torch.arange(fan_in).flip(0).expand(conv_groups, -1)
    layout = conv_layout(layer, 2, order=order)
    images = (mean * (1 + torch.arange(10.0).view(1, -1, 1, 1) / 10) + normal(40, 10, 5, 5)).float()
    patches, _, outputs = brute_force(layer, images.double())
    sums, exact = MomentSums(layer, layout, max_bytes), MomentSums(layer, layout, max_bytes)
    for part in range(0, 40, 8):
        sums.update(images[part : part + 8], outputs[part : part + 8].float())
        exact.update(images[part : part + 8].double(), outputs[part : part + 8].float().double())
    found, expected = sums.average(), exact.average()
    for name in ("second", "cross", "energy"):
        ours, theirs = (getattr(m.centred(), name) for m in (found, expected))
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6, name
    for name in ("second", "cross", "energy", "mean_in", "mean_out"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=0)
    if found.runs == 1:
        flat = patches.flip(2).flatten(2)
        flat = flat - flat.mean(1, keepdim=True)
        live = flat.shape[2]
        own = found.centred().second[:, :live, :live]
        truth = flat.mT @ flat / flat.shape[1]
        assert float((own - truth).norm() / truth.norm()) < 1e-6
        assert not found.second[:, live:].any()


def test_merged_sums_about_other_points_are_those_of_one_process():
    layer = nn.Linear(4, 3)
    layout = GroupLayout("layer", "column", 3, 4, 1, 2, 1)
    images, outputs = normal(90, 4).float() + 1000, normal(90, 3, seed=1).float() - 500
    images[50:] += 3
    outputs[50:] *= -1
    parts = [MomentSums(layer, layout) for _ in range(3)]
    parts[0].update(images[:50], outputs[:50])
    parts[1].update(images[50:], outputs[50:])
    parts[0].merge(parts[2])  # which has seen nothing
    parts[0].merge(parts[1])
    parts[2].merge(parts[0])
    x, y = images.double(), outputs.double()
    for moments in (parts[0].average(), parts[2].average()):
        assert moments.samples == 90
        torch.testing.assert_close(moments.second[0], x.T @ x / 90, rtol=1e-10, atol=0)
        torch.testing.assert_close(moments.cross[0], x.T @ y / 90, rtol=1e-6, atol=0)
        torch.testing.assert_close(moments.energy[0], y.square().mean(0), rtol=1e-10, atol=0)
        torch.testing.assert_close(moments.mean_in[0], x.mean(0), rtol=1e-10, atol=0)
        torch.testing.assert_close(moments.mean_out[0], y.mean(0), rtol=1e-6, atol=0)
        held = torch.cov(x.T, correction=0)
        torch.testing.assert_close(moments.centred().second[0], held, rtol=1e-6, atol=1e-6)


def test_merged_sums_are_those_of_one_process():
    layer = nn.Linear(4, 3).double()
    layout = GroupLayout("layer", "column", 3, 4, 1, 2, 1)
    images, outputs = normal(9, 4), normal(9, 3, seed=1)
    parts = [MomentSums(layer, layout) for _ in range(3)]
    parts[0].update(images[:5], outputs[:5])
    parts[1].update(images[5:], outputs[5:])
    parts[2].update(images, outputs)
    parts[0].merge(parts[1])
    torch.testing.assert_close(parts[0].average().second, parts[2].average().second)
    assert parts[0].average().samples == 9


@pytest.mark.parametrize("order", [None, [[4, 0, 8, 2, 6, 1, 5, 9, 3, 7]]])
def test_fewer_patches_than_half_the_rows_come_along(order):
    layer = nn.Linear(10, 3).double()
    order = torch.tensor(order) if order else None
    layout = GroupLayout("layer", "column", 3, 10, 1, 3, 1)  # 12 rows, two of them dead
    images, outputs = 5 + normal(5, 10), normal(5, 3, seed=1)
    first, second = MomentSums(layer, layout), MomentSums(layer, layout)
    first.update(images[:2], outputs[:2])
    second.update(images[2:], outputs[2:])
    first.merge(second)
    moments = first.average()
    if order is not None:
        moments = moments.reordered(order)
    expected = images if order is None else images[:, order[0]]
    torch.testing.assert_close(moments.patches[:, :10], expected)
    assert not moments.patches[:, 10:].any()
    weight = normal(3, 10, seed=2)
    for each, own in ((moments, expected), (moments.centred(), expected - expected.mean(0))):
        torch.testing.assert_close(each.second[0, :10, :10], own.T @ own / 5)
        assert not each.second[0, 10:].any()
        torch.testing.assert_close(each.power[0, :10], own.square().mean(0))
        # What one FM adds to an output: w x.
        placed = weight if order is None else weight[:, order[0]]
        energy = each.kernel_energy(weight)
        energy = energy if order is None else energy[:, order[0]]
        torch.testing.assert_close(energy, placed.square() * own.square().mean(0))


@pytest.mark.parametrize("sizes", [(4, 4), (2, 8), (8, 2), (8, 8)])
def test_merged_patches_that_are_too_many_become_their_moment(sizes):
    layer = nn.Linear(10, 3).double()
    layout = GroupLayout("layer", "column", 3, 10, 1, 3, 1)  # 12 rows
    parts = [MomentSums(layer, layout) for _ in sizes]
    seen = [normal(n, 10, seed=n + i) + i for i, n in enumerate(sizes)]
    for part, images in zip(parts, seen, strict=True):
        part.update(images, normal(len(images), 3))
    parts[0].merge(parts[1])
    moments, images = parts[0].average(), torch.cat(seen)
    assert moments.patches is None
    torch.testing.assert_close(moments.second[0, :10, :10], images.T @ images / len(images))


def test_more_patches_or_several_bands_leave_the_moments_alone():
    layer = nn.Linear(10, 3).double()
    sums = MomentSums(layer, GroupLayout("layer", "column", 3, 10, 1, 3, 1))
    sums.update(normal(3, 10), normal(3, 3))
    assert sums.average().patches is not None
    sums.update(normal(3, 10, seed=1), normal(3, 3))  # 6 of 12 rows
    moments = sums.average()
    assert moments.patches is None
    images = torch.cat([normal(3, 10), normal(3, 10, seed=1)])
    torch.testing.assert_close(moments.second[0, :10, :10], images.T @ images / 6)
    wide = MomentSums(layer, GroupLayout("layer", "column", 3, 10, 1, 2, 1), max_bytes=8 * 4 * 4)
    wide.update(normal(1, 10), normal(1, 3))
    assert wide.average().patches is None


def test_a_wide_layer_is_cut_into_runs_of_whole_groups():
    layer = nn.Linear(10, 3, bias=False).double()
    layout = GroupLayout("layer", "column", 3, 10, 1, 2, 1)
    sums = MomentSums(layer, layout, max_bytes=8 * 4 * 4)
    images = normal(50, 10)
    sums.update(images, layer(images).detach())
    moments = sums.average()
    assert moments.runs == 3
    whole = images.T @ images / 50
    torch.testing.assert_close(moments.second[1], whole[4:8, 4:8])
    gram = layer_problem(moments, layer.weight).gram
    parts = [images[:, i : i + 2] @ layer.weight[:, i : i + 2].T for i in (0, 2, 4)]
    products = [(parts[0] * part).mean(0) for part in parts]
    torch.testing.assert_close(gram[:, 0, :2], torch.stack(products[:2], 1).detach())
    assert not gram[:, 0, 2].any()


def test_tokens_are_samples():
    layer = nn.Linear(4, 3, bias=False).double()
    tokens = normal(2, 5, 4)
    sums = MomentSums(layer, GroupLayout("layer", "column", 3, 4, 1, 2, 1))
    sums.update(tokens, layer(tokens).detach())
    flat = tokens.flatten(0, 1)
    torch.testing.assert_close(sums.average().second[0], flat.T @ flat / 10)


def test_drawn_positions_are_a_part_of_all():
    layer = nn.Conv2d(2, 2, 1, bias=False).double()
    image = torch.arange(18.0, dtype=torch.float64).view(1, 2, 3, 3)
    sums = MomentSums(layer, conv_layout(layer, 1), positions=4)
    sums.update(image, layer(image).detach())
    moments = sums.average()
    assert moments.samples == 4
    # Both channels were read at the same four positions, and so were the outputs.
    torch.testing.assert_close(
        moments.mean_in[0, 1] - moments.mean_in[0, 0], torch.tensor(9.0).double()
    )
    torch.testing.assert_close(moments.cross, moments.second @ moments.place(layer.weight))


def test_few_patches_whose_products_overflow_are_an_error():
    layer = nn.Linear(12, 3).double()
    sums = MomentSums(layer, GroupLayout("layer", "column", 3, 12, 1, 3, 1))
    sums.update(normal(4, 12) * 1e200, normal(4, 3))
    with pytest.raises(DataError, match="NaN or Inf"):
        sums.average()


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_the_gram_form_is_the_loss_of_every_mask(grain):
    layer = nn.Conv2d(5, 6, 2, bias=False).double()
    layout = conv_layout(layer, 2, grain, kout=4)
    images, dense = normal(4, 5, 4, 4), normal(4, 6, 3, 3, seed=1)
    sums = MomentSums(layer, layout)
    sums.update(images, dense)
    scale = torch.arange(1.0, 7.0)
    problem = layer_problem(sums.average(), layer.weight, scale)
    mask = torch.rand(layout.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    left = F.conv2d(images, layer.weight * layout.expand_like(mask, layer.weight))
    error = ((dense - left) * scale.view(-1, 1, 1)).square().mean((0, 2, 3)).detach()
    expected = torch.zeros(layout.units, dtype=torch.float64)
    expected.index_add_(0, layout.unit_of_output, error)
    torch.testing.assert_close(problem.relative_loss(mask) * problem.energy, expected)
    assert problem.refit is not None
    ones = torch.ones_like(mask)
    assert bool((problem.refit.solve(ones)[1] <= problem.refit.solve(mask)[1] + 1e-12).all())


def test_nothing_seen_and_nan_are_errors():
    layer = nn.Linear(2, 2)
    layout = GroupLayout("fc", "column", 2, 2, 1, 1, 1)
    with pytest.raises(DataError, match="fc was not run"):
        MomentSums(layer, layout).average()
    sums = MomentSums(layer, layout)
    sums.update(torch.full((3, 2), torch.inf), torch.zeros(3, 2))
    with pytest.raises(DataError, match="fc meets NaN or Inf"):
        sums.average()
