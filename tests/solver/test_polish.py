"""The last swaps of a search: on the problem itself, and only where these can be paid for."""

import itertools

import pytest
import torch

from crosspruner.solver import RefitProblem, lgd_rpp_refit, polish
from crosspruner.solver.pivot import PivotTable

from .test_refit import enumerate_refits, random_problem


def test_what_pivots_cost_tells_whether_they_are_affordable(monkeypatch):
    problem = random_problem(groups=6, height=4, batch=3)
    # 2 D^2 d for each of 3 toggles to half of the groups and 8 of 4 swaps, of 3 problems.
    flops = 3 * 2 * 24**2 * 4 * (3 + 8)
    monkeypatch.setattr(polish, "FLOPS", flops)
    assert polish.affordable(problem)
    monkeypatch.setattr(polish, "FLOPS", flops - 1)
    assert not polish.affordable(problem)
    assert polish.affordable(problem.rows(slice(2)))


def test_wide_layers_of_few_patches_are_not_polished():
    patches = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.ones(1, 12, 1, dtype=torch.float64)
    problem = RefitProblem(None, target, torch.ones(1), 4, patches=patches, ridge=0.1)
    assert not polish.affordable(problem)
    assert polish.affordable(RefitProblem(problem.moment, target, torch.ones(1), 4))


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_no_exchange_helps_after_a_polish(keep):
    problem = random_problem(groups=6, height=3, batch=8, seed=keep)
    start = (torch.arange(6) < keep).expand(1, 8, -1)
    mask = polish.best_after_swaps(problem, start)
    assert torch.equal(mask.sum(1), torch.full((8,), keep))
    loss = problem.solve(mask)[1]
    assert (loss <= problem.solve(start[0])[1] * (1 + 1e-6)).all()
    for kept, pruned in itertools.product(range(6), range(6)):
        rows = mask[:, kept] & ~mask[:, pruned]
        other = mask.clone()
        other[rows, kept], other[rows, pruned] = False, True
        assert (problem.solve(other)[1] >= loss * (1 - 1e-4)).all()


def test_the_best_of_the_runs_is_told_by_the_problem_itself(monkeypatch):
    problem = random_problem(groups=6, height=3, batch=8, seed=1)
    monkeypatch.setattr(PivotTable, "descend", lambda self, **_: None)
    runs = torch.stack([torch.arange(6).roll(shift).expand(8, -1) < 3 for shift in range(6)])
    losses = torch.stack([problem.solve(mask)[1] for mask in runs])
    mask = polish.best_after_swaps(problem, runs)
    torch.testing.assert_close(problem.solve(mask)[1], losses.min(0).values)
    assert len(losses.argmin(0).unique()) > 1


def test_what_float32_cannot_factor_is_polished_in_float64(refuse_float32):
    problem = random_problem(groups=5, height=3, batch=2)
    runs = (torch.arange(5) < 2).expand(1, 2, -1)
    expected = polish.best_after_swaps(problem, runs)
    tried = refuse_float32()
    assert torch.equal(polish.best_after_swaps(problem, runs), expected)
    assert tried == [torch.float32, torch.float64]


def test_a_search_on_few_directions_ends_lower_for_a_polish(monkeypatch):
    problem = random_problem(groups=8, height=6, batch=40, outputs=1, seed=3)
    settings = {"rank": 1, "restarts": 1, "exact": False}
    polished = problem.solve(lgd_rpp_refit(problem, 4, **settings))[1]
    monkeypatch.setattr(polish, "FLOPS", 0.0)
    plain = problem.solve(lgd_rpp_refit(problem, 4, **settings))[1]
    optimum = enumerate_refits(problem, 4)
    assert (polished >= optimum * (1 - 1e-9)).all()
    assert (polished <= plain * (1 + 1e-6)).all()
    assert (polished - optimum).sum() < 0.5 * (plain - optimum).sum()
    # Without swaps a search is what its runs are.
    monkeypatch.setattr(polish, "FLOPS", 1e12)
    monkeypatch.setattr(polish, "best_after_swaps", None)
    assert lgd_rpp_refit(problem, 4, swaps=False, **settings).sum() == 160
