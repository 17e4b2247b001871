"""The refit-aware saliency against refits that are really carried out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crosspruner.pruning.curvature import RunningFisher, RunningMoment, draw_patches, saliency
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.pruning.step_settings import StepSettings
from crosspruner.pruning.step_solver import StepState
from crosspruner.sparsity import GroupLayout


def refit_errors(rows, weight, groups):
    """Squared error, per output and group, of leaving the group out and refitting the rest."""
    target = rows @ weight.T
    errors = []
    for out in groups:
        rest = [i for i in range(rows.shape[1]) if i not in out]
        solution = torch.linalg.lstsq(rows[:, rest], target).solution
        errors.append((target - rows[:, rest] @ solution).square().mean(dim=0))
    return torch.stack(errors, dim=1)


@pytest.mark.parametrize("order", [None, [4, 2, 0, 1, 3]])
def test_saliency_is_the_error_after_a_refit(order):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    rows[:, 1] += 0.9 * rows[:, 0]  # what one input can say for the other
    layer = nn.Linear(5, 3, bias=False).double()
    order = torch.tensor([order]) if order else None
    layout = GroupLayout("0", "column", 3, 5, 1, 2, 1, input_order=order)
    moment = RunningMoment(layer, layout)
    moment.moment = torch.zeros(1, 6, 6, dtype=torch.float64)
    place = (order[0] if order is not None else torch.arange(5)).tolist()
    moment.moment[0, :5, :5] = rows[:, place].T @ rows[:, place] / 400
    moment.seen = 1.0
    got = saliency(layer.weight, moment.inverse_blocks(damping=1e-9), layout)
    groups = [place[0:2], place[2:4], place[4:]]
    expected = refit_errors(rows, layer.weight.detach(), groups)
    expected /= expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_given_output_weights_replace_the_shares():
    layout = GroupLayout("0", "crossbar", 2, 4, 1, 2, 2)
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 1.0]])
    white = torch.eye(2).expand(1, 2, 2, 2)
    # Energies by output and group: [1, 4] and [9, 1]
    shares = saliency(weight, white, layout)
    torch.testing.assert_close(shares, torch.tensor([[0.2 + 0.9, 0.8 + 0.1]]))
    weighed = saliency(weight, white, layout, torch.tensor([3.0, 0.5]))
    torch.testing.assert_close(weighed, torch.tensor([[3 * 1 + 0.5 * 9, 3 * 4 + 0.5 * 1]]))


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 3, 1), nn.Linear(1, 3)])
def test_outputs_weigh_by_their_mean_squared_gradient(layer):
    fisher = RunningFisher(layer, memory=0.5)
    assert fisher.weights() is None
    gradient = torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    if isinstance(layer, nn.Conv2d):
        gradient = gradient.view(2, 3, 1, 1).expand(2, 3, 4, 5)
    fisher.update(gradient)
    torch.testing.assert_close(fisher.weights(), torch.tensor([1.0, 2.0, 0.0]))
    fisher.update(1000 * gradient)  # the scale of a loss says nothing about its outputs
    torch.testing.assert_close(fisher.weights(), torch.tensor([1.0, 2.0, 0.0]))
    fisher.update(gradient * torch.inf)  # a step that mixed precision overflowed
    fisher.update(torch.zeros_like(gradient))
    torch.testing.assert_close(fisher.weights(), torch.tensor([1.0, 2.0, 0.0]))
    fisher.update(gradient.flip(1))
    # 3/8 of [1, 2, 0] and 1/2 of [0, 2, 1], over their mean
    expected = torch.tensor([0.375, 1.75, 0.5])
    torch.testing.assert_close(fisher.weights(), expected / expected.mean())


def test_the_moving_average_of_equal_batches_is_their_moment():
    layer = nn.Conv2d(4, 2, 1, groups=2, bias=False)
    layout = GroupLayout("0", "crossbar", 2, 2, 2, 1, 1)
    moment = RunningMoment(layer, layout, rows=64, memory=0.5)
    image = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    for _ in range(3):
        moment.update(image, torch.Generator().manual_seed(0))
    average = moment.moment / moment.seen
    assert average[0].tolist() == [[1.0, 2.0], [2.0, 4.0]]
    assert average[1].tolist() == [[9.0, 12.0], [12.0, 16.0]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])  # 1e30: its square is not finite
def test_a_batch_that_is_not_finite_is_skipped(value):
    layer = nn.Linear(2, 2)
    moment = RunningMoment(layer, GroupLayout("0", "column", 2, 2, 1, 1, 1), rows=4, memory=0.5)
    bad = torch.tensor([[1.0, value]])
    moment.update(bad, torch.Generator())
    assert moment.seen == 0
    moment.update(torch.tensor([[1.0, 2.0]]), torch.Generator())
    moment.update(bad, torch.Generator())
    assert (moment.moment / moment.seen).tolist() == [[[1.0, 2.0], [2.0, 4.0]]]
    assert bool(moment.inverse_blocks().isfinite().all())


def test_processes_count_by_what_they_have_seen():
    layout = GroupLayout("0", "column", 2, 2, 1, 1, 1)
    settings = StepSettings(moment_rows=4)
    states = [
        StepState(MaskedLayer(nn.Linear(2, 2), layout), settings, torch.Generator())
        for _ in range(2)
    ]
    moments = [state.moment for state in states]
    batch = torch.tensor([[1.0, 2.0]])
    moments[0].update(batch, torch.Generator())
    moments[1].update(batch * torch.nan, torch.Generator())
    held = [[moment.moment.clone(), torch.tensor(moment.seen)] for moment in moments]
    for state in states:
        means = iter([sum(values) / 2 for values in zip(*held, strict=True)])
        state.average(lambda value, means=means: next(means) if value.dim() != 1 else value)
    for moment in moments:
        found = moment.moment / moment.seen
        torch.testing.assert_close(found, torch.tensor([[[1.0, 2.0], [2.0, 4.0]]]))


def test_a_wide_layer_is_cut_into_runs_of_whole_groups():
    layer = nn.Linear(10, 2)
    layout = GroupLayout("0", "column", 2, 10, 1, 2, 1)
    moment = RunningMoment(layer, layout, rows=8, widest=4)
    assert (moment.runs, moment.groups_per_run) == (3, 2)
    moment.update(torch.randn(8, 10), torch.Generator().manual_seed(0))
    assert moment.inverse_blocks().shape == (1, 5, 2, 2)


def test_dead_inputs_cost_nothing_to_lose():
    layer = nn.Linear(4, 2)
    nn.init.ones_(layer.weight)
    layout = GroupLayout("0", "column", 2, 4, 1, 1, 1)
    moment = RunningMoment(layer, layout, rows=256)
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, 2] = 0
    moment.update(inputs, torch.Generator().manual_seed(0))
    got = saliency(layer.weight, moment.inverse_blocks(), layout)
    assert bool((got.argmin(dim=1) == 2).all())
    assert bool(got.isfinite().all())


def test_all_inputs_dead_gives_finite_scores():
    layer = nn.Linear(4, 2)
    moment = RunningMoment(layer, GroupLayout("0", "column", 2, 4, 1, 1, 1))
    moment.update(torch.zeros(3, 4), torch.Generator().manual_seed(0))
    assert bool(saliency(layer.weight, moment.inverse_blocks(), moment.layout).isfinite().all())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([0, 1, "same"]),
    st.sampled_from([1, 2]),
    st.sampled_from(["zeros", "circular", "reflect"]),
)
def test_drawn_patches_give_the_layers_own_outputs(
    kh, kw, stride, dilation, padding, conv_groups, mode
):
    if padding == "same":
        stride = 1
    layer = nn.Conv2d(
        *(4, 2, (kh, kw), stride, padding, dilation),
        groups=conv_groups,
        bias=False,
        padding_mode=mode,
    ).double()
    images = torch.arange(2 * 4 * 7 * 6, dtype=torch.float64).view(2, 4, 7, 6).sin()
    generator = torch.Generator().manual_seed(0)
    patches = draw_patches(layer, images, 40, generator).double()
    weight = layer.weight.flatten(1).view(conv_groups, 2 // conv_groups, -1)
    got = (patches @ weight.transpose(1, 2)).detach().permute(1, 0, 2).flatten(1)
    everywhere = layer(images).detach().permute(0, 2, 3, 1).reshape(-1, 2)
    distance = (got.unsqueeze(1) - everywhere.unsqueeze(0)).abs().amax(dim=2).amin(dim=1)
    assert float(distance.max()) < 1e-5  # patches are float32


def test_a_circular_layer_reads_no_zeros():
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    images = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    patches = draw_patches(layer, images, 50, torch.Generator().manual_seed(0))
    # Around 1 2 / 3 4 stand 4 3 4 3 and so on: the patch at the first position by hand.
    assert [4.0, 3.0, 4.0, 2.0, 1.0, 2.0, 4.0, 3.0, 4.0] in patches[0].tolist()
    assert bool((patches > 0).all())


def test_patches_of_a_layer_that_pads_in_its_forward_pass():
    class Same(nn.Conv2d):
        def forward(self, x):  # TensorFlow's SAME: one row and column of zeros at the end
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    layer = Same(1, 1, 2, bias=False)
    images = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    layout = GroupLayout("0", "column", 1, 1, 1, 1, 1)
    size = tuple(layer(images).shape[2:])
    patches = draw_patches(layer, images, 50, torch.Generator().manual_seed(0), size)
    seen = sorted(set(map(tuple, patches[0].tolist())))
    assert seen == [(1, 2, 3, 4), (2, 0, 4, 0), (3, 4, 0, 0), (4, 0, 0, 0)]
    moment = RunningMoment(layer, layout, rows=50, memory=0.0)
    moment.update(images, torch.Generator().manual_seed(0), size=size)
    torch.testing.assert_close(moment.moment[0], patches[0].T @ patches[0] / 50)
