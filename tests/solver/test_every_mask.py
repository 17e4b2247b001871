"""Layers of few groups: the losses of all masks against solving each of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.solver import LayerProblem, RefitProblem, choose_mask
from crosspruner.solver.every_mask import EveryMask
from crosspruner.solver.exhaustive import masks_of, refitted_losses, trial_flops
from crosspruner.solver.judge import ExactJudge, RefitJudge, judge_of

from .test_refit import enumerate_refits, random_problem


def layer(groups=5, batch=4, seed=0):
    """A problem of both forms."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(90, 3 * groups, generator=generator, dtype=torch.float64)
    weight = torch.randn(3 * groups, batch, generator=generator, dtype=torch.float64)
    rows, outputs = torch.full((groups,), 3), torch.arange(batch).view(-1, 1)
    return LayerProblem.from_moments(inputs.T @ inputs / 90, weight, rows, outputs)


def test_masks_stand_in_the_order_of_what_they_keep():
    kept = [mask.nonzero().flatten().tolist() for mask in masks_of(4, 2)]
    assert kept == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert masks_of(3, 0).tolist() == [[False] * 3]
    assert masks_of(3, 3).tolist() == [[True] * 3]


@given(groups=st.integers(1, 6), height=st.integers(1, 3), seed=st.integers(0, 50))
@settings(max_examples=25)
def test_losses_of_all_masks_are_those_of_solving_each(groups, height, seed):
    problem = random_problem(groups=groups, height=height, batch=3, seed=seed)
    every = EveryMask.of(problem)
    for keep in range(groups + 1):
        masks = masks_of(groups, keep)
        solved = torch.stack([problem.solve(mask.expand(3, -1))[1] for mask in masks], 1)
        torch.testing.assert_close(refitted_losses(problem, keep), solved, rtol=1e-8, atol=1e-8)
        found = torch.stack([every.loss(mask.expand(3, -1)) for mask in masks], 1)
        torch.testing.assert_close(found, solved, rtol=1e-8, atol=1e-8)


def test_the_best_masks_are_those_of_enumeration():
    problem = random_problem(groups=6, batch=5, seed=2)
    every, keep = EveryMask.of(problem), torch.tensor([0, 2, 6, 3, 2])
    mask = every.best(keep)
    assert torch.equal(mask.sum(1), keep)
    optimum = [enumerate_refits(problem, int(number)) for number in keep]
    expected = torch.stack([losses[row] for row, losses in enumerate(optimum)])
    torch.testing.assert_close(every.loss(mask), expected)
    torch.testing.assert_close(every.least.gather(1, keep.unsqueeze(1)).squeeze(1), expected)


def test_the_judge_knows_what_groups_are_worth_as_pivots_do():
    problem = layer()
    exact, pivots = judge_of(problem), RefitJudge(problem)
    assert isinstance(exact, ExactJudge)
    for keep in range(6):
        mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(keep)).argsort(1) < keep
        torch.testing.assert_close(exact.worth(mask), pivots.worth(mask))
        torch.testing.assert_close(exact.loss(mask), pivots.loss(mask))
    # Its removals end at the best masks, those of an elimination may not.
    assert (exact.removal_costs.cumsum(1) <= pivots.removal_costs.cumsum(1) + 1e-9).all()


def test_removals_of_independent_groups_cost_their_own_energy():
    target = torch.tensor([[[3.0], [1.0], [2.0]], [[1.0], [1.0], [4.0]]]).double()
    moment = torch.eye(3, dtype=torch.float64)
    judge = ExactJudge(EveryMask.of(RefitProblem(moment, target, torch.tensor([14.0, 18.0]), 3)))
    assert judge.removal_costs.tolist() == [[1.0, 4.0], [1.0, 1.0]]
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert judge.loss(mask).tolist() == [1.0, 2.0]
    assert judge.worth(mask).tolist() == [[9.0, 1.0, 4.0], [1.0, 1.0, 16.0]]


def test_factors_take_longer_than_products_of_as_many_operations():
    """Twenty masks of three of six groups: a third of 6^3 four times over, and 6^2 for each of four
    problems; two of six are as well told by the four that are kept as by the two pruned."""
    problem = random_problem(groups=6, height=2)
    outputs = problem.target.shape[0] * problem.target.shape[2]
    assert trial_flops(problem, 3) == 20 * (4 * 6**3 / 3 + outputs * 6**2)
    assert trial_flops(problem, 4) == trial_flops(problem, 2)


def test_only_layers_of_few_groups_are_tried_out(monkeypatch):
    problem = random_problem(groups=6)
    flops = sum(trial_flops(problem, keep) for keep in range(7))
    monkeypatch.setattr("crosspruner.solver.every_mask.MAX_FLOPS", flops)
    assert EveryMask.of(problem) is not None
    monkeypatch.setattr("crosspruner.solver.every_mask.MAX_FLOPS", flops - 1)
    assert EveryMask.of(problem) is None
    assert EveryMask.of(random_problem(groups=13, height=1)) is None  # 8,192 masks
    moment = problem.moment.expand(3, -1, -1)
    assert EveryMask.of(RefitProblem(moment, problem.target, problem.constant, 6)) is None


@pytest.mark.parametrize("keep", [2, torch.tensor([1, 4, 3, 3])])
def test_lgd_rpp_looks_masks_up_where_all_are_known(keep, monkeypatch):
    problem = layer(seed=3)
    searched = choose_mask(problem, keep, refit=True, options={"exact": False})
    monkeypatch.setattr("crosspruner.solver.problem.stand_in_of", None)
    problem = layer(seed=3)
    mask = choose_mask(problem, keep, refit=True)
    assert torch.equal(mask.sum(1), torch.as_tensor(keep).expand(4))
    loss = problem.refit.solve(mask)[1]
    assert (loss <= problem.refit.solve(searched)[1] * (1 + 1e-9)).all()
