"""The closed-form refit against least squares that is really solved."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from crosspruner.errors import SolverError
from crosspruner.pruning.layer_problem import layer_problem
from crosspruner.pruning.mask_choice import choose_layer_mask
from crosspruner.pruning.moment_sums import MomentSums
from crosspruner.pruning.reconstruct import mean_output, reconstruction_error, refit
from crosspruner.solver.exhaustive import best_of_all_refit
from crosspruner.solver.few_patches import FewPatches
from crosspruner.solver.reduce import _stand_in, reduce_problem
from crosspruner.sparsity import GroupLayout


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(layer, layout, inputs, outputs, **options):
    sums = MomentSums(layer, layout, **options)
    sums.update(inputs, outputs)
    return sums.average()


def of_rows(moments):
    """The same moments without patches."""
    return replace(moments, products=moments.second, patches=None)


@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("order", [None, [6, 0, 3, 1, 5, 2, 4]])
def test_the_refit_is_the_least_squares_solution(grain, order):
    layer = nn.Linear(7, 5, bias=False).double()
    order = torch.tensor([order]) if order else None
    layout = GroupLayout("layer", grain, 5, 7, 1, 2, 2, input_order=order)
    inputs = normal(200, 7)
    inputs[:, 1] += inputs[:, 0]
    outputs = inputs @ layer.weight.detach().T + 0.3 * normal(200, 5, seed=1)
    mask = torch.rand(layout.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[0] = True
    moments = moments_of(layer, layout, inputs, outputs)
    new = refit(moments, layer.weight, mask, damping=0)
    kept = layout.expand(mask)
    for output in range(5):
        rows = kept[output].nonzero().squeeze(1)
        solution = torch.linalg.lstsq(inputs[:, rows], outputs[:, output]).solution
        torch.testing.assert_close(new[output, rows], solution, rtol=1e-6, atol=1e-6)
    assert not new[~kept].any()
    error = (outputs - inputs @ new.T).square().mean(0)
    torch.testing.assert_close(reconstruction_error(moments, new), error)
    fixed = layer.weight.detach() * kept
    assert bool((error <= reconstruction_error(moments, fixed) + 1e-12).all())


@pytest.mark.parametrize("samples", [200, 3])
def test_what_is_known_of_the_moments_is_not_made_again(monkeypatch, samples):
    """By the problem that the mask was chosen on, whose targets are weighed."""
    layer = nn.Linear(7, 5, bias=False).double()
    layout = GroupLayout("layer", "column", 5, 7, 1, 2, 2)
    inputs = normal(samples, 7)
    moments = moments_of(layer, layout, inputs, normal(samples, 5, seed=1))
    assert (moments.patches is None) == (samples == 200)
    mask = normal(*layout.shape, seed=3).argsort(1) < 3
    expected = refit(moments, layer.weight, mask)
    known = layer_problem(moments, layer.weight, scale=normal(5, seed=4).abs() + 0.1).refit

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("crosspruner.pruning.reconstruct.damped", never)
    found = refit(moments, layer.weight, mask, known=known)
    torch.testing.assert_close(found, expected)


def test_grouped_convolutions_refit_each_group_on_its_own_inputs():
    layer = nn.Conv2d(8, 4, 1, groups=2, bias=False).double()
    layout = GroupLayout("layer", "column", 4, 4, 2, 2, 1)
    inputs = normal(300, 8, 1, 1)
    outputs = normal(300, 4, 1, 1, seed=1)
    mask = torch.tensor([[True, False], [True, True], [False, True], [True, False]])
    new = refit(moments_of(layer, layout, inputs, outputs), layer.weight, mask, damping=0)
    flat = inputs.flatten(1)
    for output, columns in enumerate([[0, 1], [0, 1, 2, 3], [6, 7], [4, 5]]):
        solution = torch.linalg.lstsq(flat[:, columns], outputs[:, output, 0, 0]).solution
        place = [c % 4 for c in columns]
        torch.testing.assert_close(new[output, place, 0, 0], solution, rtol=1e-6, atol=1e-6)


def test_damping_pulls_toward_the_old_weight():
    layer = nn.Linear(4, 3, bias=False).double()
    layout = GroupLayout("layer", "column", 3, 4, 1, 2, 1)
    moments = moments_of(layer, layout, normal(100, 4), normal(100, 3, seed=1))
    mask = torch.ones(layout.shape, dtype=torch.bool)
    stiff = refit(moments, layer.weight, mask, damping=1e9)
    torch.testing.assert_close(stiff, layer.weight.detach(), rtol=1e-6, atol=1e-6)
    r = 0.5 * moments.second[0].diagonal().mean()
    system = moments.second[0] + r * torch.eye(4)
    expected = torch.linalg.solve(system, moments.cross[0] + r * layer.weight.detach().T).T
    torch.testing.assert_close(refit(moments, layer.weight, mask, damping=0.5), expected)


def test_a_dead_layer_keeps_its_weights():
    layer = nn.Linear(4, 3, bias=False)
    layout = GroupLayout("layer", "column", 3, 4, 1, 2, 1)
    moments = moments_of(layer, layout, torch.zeros(10, 4), torch.zeros(10, 3))
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    new = refit(moments, layer.weight, mask)
    torch.testing.assert_close(new, layer.weight.detach() * layout.expand(mask))


def test_fewer_samples_than_inputs_still_fit_them():
    layer = nn.Linear(40, 3, bias=False).double()
    layout = GroupLayout("layer", "column", 3, 40, 1, 4, 1)
    inputs = normal(6, 40)
    outputs = normal(6, 3, seed=1)
    mask = torch.ones(layout.shape, dtype=torch.bool)
    mask[:, 5:] = False
    new = refit(moments_of(layer, layout, inputs, outputs), layer.weight, mask, damping=1e-6)
    torch.testing.assert_close(inputs @ new.T, outputs, rtol=1e-3, atol=1e-3)
    assert not new[:, 20:].any()


@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
def test_few_patches_solve_the_same_system(grain, damping):
    layer = nn.Linear(40, 6, bias=False).double()
    layout = GroupLayout("layer", grain, 6, 40, 1, 3, 2)  # the last group has one FM
    mask = torch.rand(layout.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[0], mask[1] = False, True
    mask[0, 2] = True  # fewer rows than patches
    moments = moments_of(layer, layout, normal(8, 40), normal(8, 6, seed=1)).centred()
    few = refit(moments, layer.weight, mask, damping)
    among_rows = refit(of_rows(moments), layer.weight, mask, damping)
    torch.testing.assert_close(few, among_rows, rtol=1e-8, atol=1e-10)
    assert not few[~layout.expand(mask)].any()


@pytest.mark.parametrize("grain", ["crossbar", "column"])
def test_few_patches_give_the_same_problem(grain):
    layer = nn.Linear(48, 6, bias=False).double()
    layout = GroupLayout("layer", grain, 6, 48, 1, 8, 2)
    moments = moments_of(layer, layout, normal(10, 48), normal(10, 6, seed=1))
    near = {"rtol": 1e-8, "atol": 1e-9}
    problems = [layer_problem(m, layer.weight) for m in (moments, of_rows(moments))]
    torch.testing.assert_close(problems[0].gram, problems[1].gram, **near)
    few, whole = (problem.refit for problem in problems)
    columns = normal(few.num_problems * 48, 2).view(few.num_problems, 48, 2)
    torch.testing.assert_close(few.inverse_times(columns), whole.inverse_times(columns), **near)
    torch.testing.assert_close(few.inverse, whole.inverse, **near)
    torch.testing.assert_close(few.moment, whole.moment, **near)
    for keep in (1, 4):
        assert torch.equal(best_of_all_refit(few, keep), best_of_all_refit(whole, keep))
    for rank in (2, 7):
        ways = [_stand_in(problem, rank, torch.float64) for problem in (few, whole)]
        for one, other in zip(*ways, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
        # In float32 each rounds in its own way: seven digits of the largest entry, less what the
        # moment's condition takes.
        for problem in (few, whole):
            made = reduce_problem(problem, rank)
            for found, exact in zip((made.moment, made.target), ways[1], strict=True):
                assert float((found - exact).abs().max()) < 5e-5 * float(exact.abs().max())


@pytest.mark.parametrize("grain", ["crossbar", "column"])
@pytest.mark.parametrize("at_once", [2**25, 1])
def test_refitted_losses_among_few_patches_are_those_among_the_rows(grain, at_once, monkeypatch):
    layer = nn.Linear(48, 6, bias=False).double()
    layout = GroupLayout("layer", grain, 6, 48, 1, 8, 2)
    moments = moments_of(layer, layout, normal(10, 48), normal(10, 6, seed=1))
    few = layer_problem(moments, layer.weight).refit
    whole = layer_problem(of_rows(moments), layer.weight).refit
    mask = torch.rand(few.num_problems, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0], mask[1] = True, False
    assert few.few is not None
    assert few.rows(slice(1)).few is few.few
    monkeypatch.setattr("crosspruner.solver.few_patches._CHUNK_ENTRIES", at_once)
    for mine, theirs in zip(few.solve(mask), whole.solve(mask), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


def test_products_of_patches_that_take_too_much_memory_are_not_made(monkeypatch):
    monkeypatch.setattr("crosspruner.solver.few_patches._CHUNK_ENTRIES", 6 * 10 * 10 // 2 - 1)
    assert FewPatches.of(normal(10, 48), 8, 0.1) is None
    assert FewPatches.of(normal(9, 48), 8, 0.1) is not None
    assert FewPatches.of(None, 8, 0.1) is None


def test_patches_that_leave_the_system_singular_are_a_solver_error():
    few = FewPatches(1e3 * torch.ones(3, 8).double(), 2, 1e-15)
    with pytest.raises(SolverError, match="singular"):
        few.solve(torch.ones(1, 4, dtype=torch.bool), torch.ones(8, 1, 1).double())


def test_centred_moments_and_the_mean_give_least_squares_with_a_bias():
    layer = nn.Linear(4, 2).double()
    layout = GroupLayout("layer", "column", 2, 4, 1, 2, 1)
    inputs, outputs = normal(80, 4) + 5, normal(80, 2, seed=1) - 3
    mask = torch.tensor([[True, False], [True, True]])
    raw = moments_of(layer, layout, inputs, outputs)
    new = refit(raw.centred(), layer.weight, mask, damping=0)
    shift = raw.mean_out.flatten() - mean_output(raw, new)
    with_one = torch.cat([inputs[:, :2], torch.ones(80, 1)], 1)
    solution = torch.linalg.lstsq(with_one, outputs[:, 0]).solution
    torch.testing.assert_close(new[0, :2], solution[:2], rtol=1e-5, atol=1e-6)
    assert float(shift[0]) == pytest.approx(float(solution[2]), rel=1e-5)


def test_runs_without_correlation_between_them_refit_like_the_whole():
    layer = nn.Linear(8, 3, bias=False).double()
    layout = GroupLayout("layer", "column", 3, 8, 1, 2, 1)
    inputs = torch.linalg.qr(normal(64, 8)).Q * 8  # no correlation at all
    outputs = inputs @ layer.weight.detach().T
    mask = torch.rand(layout.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    whole = moments_of(layer, layout, inputs, outputs)
    cut = moments_of(layer, layout, inputs, outputs, max_bytes=8 * 4 * 4)
    assert cut.runs == 2
    torch.testing.assert_close(
        refit(cut, layer.weight, mask), refit(whole, layer.weight, mask), rtol=1e-6, atol=1e-8
    )


def test_masks_for_refitted_weights_need_no_gram_form(monkeypatch):
    images = normal(40, 6, 4, 4)
    layer = nn.Conv2d(6, 5, 3, padding=1).double()
    layout = GroupLayout("layer", "column", 5, 6, 1, 1, 1)
    moments = moments_of(layer, layout, images, layer(images).detach())
    asked = []
    monkeypatch.setattr(
        "crosspruner.pruning.layer_problem._gram",
        lambda *_: asked.append(1) or torch.zeros(5, 6, 6),
    )
    for solver in ("lgd_rpp", "greedy", "obs_group"):
        problem = layer_problem(moments, layer.weight)
        assert choose_layer_mask(problem, 16, layout, solver).sum() == 16
    assert not asked
    assert problem.gram is problem.gram
    assert asked == [1]
