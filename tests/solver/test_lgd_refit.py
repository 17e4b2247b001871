"""Masks for refitted weights: the optimum where masks can be enumerated, and no worse after."""

import itertools
from dataclasses import replace

import pytest
import torch

from crosspruner.errors import SolverError
from crosspruner.solver import RefitProblem, lgd_rpp_refit, obs_group, polish, reduce
from crosspruner.solver.blocks import join_weights
from crosspruner.solver.exhaustive import best_of_all_refit
from crosspruner.solver.factor import cholesky
from crosspruner.solver.lgd_refit import solve_flops
from crosspruner.solver.obs import affordable_rank
from crosspruner.solver.pivot import PivotTable
from crosspruner.solver.reduce import _Frame, _stand_in, condense_targets, reduce_problem

from .test_refit import enumerate_refits, every_mask, random_layer, random_problem


@pytest.mark.parametrize("keep", [2, 4, 6])
def test_lgd_rpp_refit_finds_the_optimum_of_enumerated_problems(keep):
    problem = random_problem(groups=8, height=4, batch=8, seed=5)
    mask = lgd_rpp_refit(problem, keep, restarts=8)
    optimum = enumerate_refits(problem, keep)
    assert torch.allclose(problem.solve(mask)[1], optimum, rtol=1e-9)


@pytest.mark.parametrize("keep", [0, 1, 2, 5, 6])
def test_trying_all_masks_finds_the_least_loss(keep, monkeypatch):
    problem = random_problem(groups=6, batch=4, outputs=3, seed=keep)
    monkeypatch.setattr("crosspruner.solver.exhaustive._CHUNK_ENTRIES", 2000)
    mask = best_of_all_refit(problem, keep)
    assert torch.equal(mask.sum(1), torch.full((4,), keep))
    assert torch.allclose(problem.solve(mask)[1], enumerate_refits(problem, keep))


def test_rows_that_cannot_afford_all_masks_are_searched(monkeypatch):
    monkeypatch.setattr("crosspruner.solver.lgd_refit.MAX_FLOPS", 3e4)
    problem, keep = random_problem(batch=5), torch.tensor([1, 3, 0, 5, 3])
    mask = lgd_rpp_refit(problem, keep)
    assert torch.equal(mask.sum(1), keep)
    for row in (0, 2):  # those that can
        best = enumerate_refits(problem, int(keep[row]))[row]
        assert problem.solve(mask)[1][row].item() == pytest.approx(best.item())


def test_condensed_outputs_weigh_masks_alike():
    moment, weight, rows = random_layer([4] * 5, 6)
    weight = weight[:, :2] @ torch.randn(2, 6, dtype=torch.float64)  # six outputs, two directions
    problem = RefitProblem.from_moments(moment, weight, rows, torch.arange(6).view(1, 6))
    small = condense_targets(problem, 2)
    assert small.target.shape == (1, 20, 2)
    for mask in every_mask(5, 3):
        whole, part = (p.solve(mask[None])[1].item() for p in (problem, small))
        assert part == pytest.approx(whole, abs=1e-8)
    assert condense_targets(problem, 6) is problem
    narrow = condense_targets(problem, 1)
    assert all(
        narrow.solve(mask[None])[1] > problem.solve(mask[None])[1] - 1e-9
        for mask in every_mask(5, 3)
    )


def test_lgd_rpp_refit_beats_group_obs():
    ratios = []
    for seed, keep in itertools.product(range(3), (4, 8, 12)):
        problem = random_problem(groups=16, height=4, batch=12, seed=seed)
        ours = problem.solve(lgd_rpp_refit(problem, keep))[1]
        ratios.append(ours / problem.solve(obs_group(problem, keep))[1])
    ratio = torch.cat(ratios)
    assert ratio.mean() < 1.0
    assert (ratio > 1.02).double().mean() < 0.02


@pytest.mark.parametrize("solve", [obs_group, lgd_rpp_refit])
def test_keep_per_row_and_at_the_ends(solve):
    problem = random_problem(groups=5, height=2, batch=4)
    keep = torch.tensor([0, 1, 3, 5])
    assert torch.equal(solve(problem, keep).sum(1), keep)


@pytest.mark.parametrize("solve", [obs_group, lgd_rpp_refit])
def test_dead_inputs_few_samples_and_an_all_zero_layer(solve):
    moment, weight, rows = random_layer([3, 3, 3, 2], 4, samples=2)
    moment[3:6] = 0
    moment[:, 3:6] = 0
    outputs = torch.arange(4).view(2, 2)
    problem = RefitProblem.from_moments(moment, weight, rows, outputs, damping=1e-4)
    mask = solve(problem, 2)
    assert (mask.sum(1) == 2).all()
    assert not mask[:, 1].any()
    weights, loss = problem.solve(mask)
    assert weights.isfinite().all()
    assert loss.isfinite().all()
    dead = RefitProblem.from_moments(torch.zeros(11, 11), weight, rows, outputs)
    mask = solve(dead, 3)
    refitted = join_weights(dead.solve(mask)[0], rows, outputs, 4)
    kept_rows = mask[:, torch.arange(4).repeat_interleave(rows)].T.repeat_interleave(2, 1)
    assert torch.allclose(refitted, weight * kept_rows)


def test_directions_in_float64_bound_to_its_digits():
    problem = random_problem(groups=6, height=5, batch=4, seed=1)
    mask = every_mask(6, 3)[:4]
    loss = problem.solve(mask)[1]

    def bound(rank):
        moment, target = _stand_in(problem, rank, torch.float64)
        return RefitProblem(moment, target, problem.constant, 6).solve(mask)[1]

    assert torch.allclose(bound(5), loss, rtol=1e-7)
    for rank in (2, 3, 4):
        assert (bound(rank) >= loss - 1e-9).all()


def test_stand_in_is_exact_at_full_rank_and_an_upper_bound_below():
    problem = random_problem(groups=6, height=5, batch=4, seed=1)
    mask = every_mask(6, 3)[:4]
    loss = problem.solve(mask)[1]
    full = reduce_problem(problem, 5).solve(mask)[1]
    assert torch.allclose(full, loss, rtol=1e-5)  # directions are found in float32
    previous = torch.full_like(loss, torch.inf)
    for rank in (2, 3, 4):
        bound = reduce_problem(problem, rank).solve(mask)[1]
        assert (bound >= loss * (1 - 1e-5)).all()
        assert (bound.sum() <= previous.sum() * (1 + 1e-5)).all()
        previous = bound


def test_stand_in_keeps_the_dense_solution():
    problem = random_problem(groups=4, height=6, batch=3, outputs=1)
    everything = torch.ones(3, 4, dtype=torch.bool)
    stand_in = reduce_problem(problem, 3)
    assert torch.allclose(
        stand_in.solve(everything)[1],
        problem.solve(everything)[1],
        atol=0.02 * problem.constant.max().item(),
    )


def test_second_responses_are_to_what_the_first_have_moved():
    """In the coordinates of a frame; by hand C_g^-1 times the sum over h of A_gh A_hh^-1 V_h."""
    problem = random_problem(groups=4, height=3, batch=2, outputs=2)
    frame = _Frame.of(problem, torch.float64)
    inverse = problem.inverse.view(4, 3, 4, 3)
    dense = problem.inverse_times(problem.target).view(2, 4, 3, 2)
    for g in range(4):
        answers = sum(
            inverse[g, :, h] @ torch.linalg.solve(inverse[h, :, h], dense[:, h])
            for h in range(4)
            if h != g
        )
        expected = torch.linalg.solve(cholesky(inverse[g, :, g].contiguous()), answers)
        torch.testing.assert_close(frame.moved(frame.weights)[g], expected.mT)


@pytest.mark.parametrize("rank", [3, 8])  # fewer directions than first responses, and more
def test_second_responses_tell_more_of_masks_than_first_ones_alone(rank, monkeypatch):
    problem = random_problem(groups=6, height=16, batch=20, outputs=1)
    mask = every_mask(6, 3)
    loss = problem.solve(mask)[1].sum()
    with_second = reduce_problem(problem, rank).solve(mask)[1].sum() - loss
    monkeypatch.setattr(reduce, "SECOND_FLOPS", 0.0)
    assert with_second < 0.9 * (reduce_problem(problem, rank).solve(mask)[1].sum() - loss)


def test_a_stand_in_that_float32_cannot_hold_is_made_in_float64():
    problem = random_problem(groups=6, height=5, batch=4, seed=1)
    moment = problem.moment.clone()
    # Two rows of a group all but equal: their difference has an energy of 1e-11 of theirs.
    moment[1], moment[:, 1] = moment[0], moment[:, 0]
    moment[1, 1] = moment[0, 0] * (1 + 1e-11)
    near = replace(problem, given=moment)
    with pytest.raises(SolverError):
        cholesky(moment.float())
    stand_in = reduce_problem(near, 5)
    mask = torch.ones(near.num_problems, 6, dtype=torch.bool)
    mask[:, 2] = False
    torch.testing.assert_close(stand_in.solve(mask)[1], near.solve(mask)[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rank", "all_pairs"), [(None, True), (2, False)])
def test_all_pairs_are_swapped_only_where_losses_are_exact(rank, all_pairs, monkeypatch):
    asked, descend = [], PivotTable.descend

    def note(table, shortlist=8, thorough=True):
        asked.append(thorough)
        descend(table, shortlist, thorough)

    monkeypatch.setattr(PivotTable, "descend", note)
    monkeypatch.setattr(polish, "FLOPS", 0.0)
    lgd_rpp_refit(random_problem(groups=6, height=4), 3, exact=False, rank=rank, restarts=1)
    assert asked == [all_pairs] * 2


def test_masks_from_the_stand_in_are_nearly_as_good():
    problem = random_problem(groups=10, height=8, batch=10, seed=3)
    exact = problem.solve(lgd_rpp_refit(problem, 5))[1].sum()
    small = problem.solve(lgd_rpp_refit(problem, 5, rank=4))[1].sum()
    dropped = problem.solve(every_mask(10, 5)[:10])[1].sum()
    assert small - exact < 0.1 * (dropped - exact)


def test_group_obs_of_a_wide_layer_judges_on_the_stand_in(monkeypatch):
    problem = random_problem(groups=10, height=8, batch=10, seed=3)
    exact = obs_group(problem, 5)
    assert torch.equal(obs_group(problem, 5, rank=8), exact)
    assert affordable_rank(problem) == 8
    monkeypatch.setattr("crosspruner.solver.obs.FLOPS", 6.1 * 10 * (10 * 4) ** 3)
    assert affordable_rank(problem) == 4
    near = obs_group(problem, 5)
    assert torch.equal(near, obs_group(problem, 5, rank=4))
    assert (near.sum(1) == 5).all()
    assert problem.solve(near)[1].sum() <= 1.05 * problem.solve(exact)[1].sum()
    with pytest.raises(SolverError, match="got 0"):
        obs_group(problem, 5, rank=0)


def test_problems_that_do_not_share_their_moment_are_never_reduced(monkeypatch):
    problem = random_problem(groups=4, height=3, batch=2, seed=1)
    own = RefitProblem(
        problem.moment.expand(2, -1, -1), problem.target, problem.constant, problem.num_groups
    )
    monkeypatch.setattr("crosspruner.solver.obs.FLOPS", 1)
    assert affordable_rank(own) == 3
    assert torch.equal(obs_group(own, 2), obs_group(problem, 2, rank=3))
    assert obs_group(own.rows(slice(0)), 2).shape == (0, 4)
    assert obs_group(problem.rows(slice(0)), 2, rank=1).shape == (0, 4)
    with pytest.raises(SolverError, match="share their moment"):
        obs_group(own, 2, rank=2)


def test_a_problem_of_many_outputs_and_the_condensed_one_make_their_inverse_once():
    moment, weight, rows = random_layer([4] * 5, 6)
    problem = RefitProblem.from_moments(moment, weight, rows, torch.arange(6).view(1, 6))
    condensed = condense_targets(problem, 2)
    assert condensed.inverse is problem.inverse
    assert problem.rows(slice(1)).inverse is problem.inverse


def test_operations_of_a_refit_are_those_of_the_smaller_system():
    problem = random_problem(groups=4, height=6, batch=3, seed=1)
    patches = torch.randn(10, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    among = RefitProblem(
        *(problem.moment, problem.target, problem.constant, 4), patches=patches, ridge=0.1
    )
    keep = torch.tensor([1, 2, 4])
    few = 10**2 * (10 / 3 + 2 * 4)
    assert solve_flops(problem, keep) == pytest.approx((6**3 + 12**3 + 24**3) / 3)
    assert solve_flops(among, keep) == pytest.approx(6**3 / 3 + 2 * few)
