"""Refits under many masks by conjugate gradients on one splitting of the moment."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import SolverError
from crosspruner.solver import deflated
from crosspruner.solver.deflated import solve_all, sooner
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.splitting import Splitting, directions


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(rows=48, least=1e-2, seed=0):
    """Positive definite, with eigenvalues from 1 down to `least`."""
    basis = torch.linalg.qr(normal(rows, rows, seed=seed)).Q
    spectrum = torch.logspace(0, torch.tensor(least).log10().item(), rows, dtype=torch.float64)
    made = basis * spectrum @ basis.T
    return (made + made.T) / 2


def supports(number, groups, seed=0):
    """Of all sizes from one group to all of them."""
    size = 1 + torch.arange(number).unsqueeze(1) % groups
    return normal(number, groups, seed=seed).argsort(1).argsort(1) < size


def exact(moment, support, target):
    """(b, n, D) by one factor each."""
    kept = support.repeat_interleave(len(moment) // support.shape[1], 1)
    found = torch.zeros_like(target)
    for rows, of, into in zip(kept, target, found, strict=True):
        into[:, rows] = torch.linalg.solve(moment[rows][:, rows], of[:, rows].T).T
    return found


def excess(moment, found, expected):
    """(b, n) energy of the error over that of the solution."""
    error = found - expected
    return ((error @ moment) * error).sum(2) / ((expected @ moment) * expected).sum(2)


def test_one_equation_of_each_group_by_hand():
    """H keeps its groups apart, so each kept row is its target over the diagonal."""
    own = torch.tensor([2.0, 4.0, 5.0, 8.0, 1.0, 10.0, 2.0, 5.0]).double().diag()
    target = torch.tensor([[6.0, 4.0, 5.0, 16.0, 3.0, 5.0, 8.0, 5.0]]).double().unsqueeze(0)
    support = torch.tensor([[True, False, True, True]])
    splitting = Splitting.of(own, 4)
    found, explained, done = solve_all(own, splitting, support, target)
    expected = torch.tensor([3.0, 1.0, 0.0, 0.0, 3.0, 0.5, 4.0, 1.0]).double()
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-4, atol=1e-5)
    # 2 * 3 * 3 + 4 + 9 + 10 / 4 + 2 * 16 + 5
    torch.testing.assert_close(explained, torch.tensor([70.5]).double(), rtol=1e-6, atol=0)
    assert done.tolist() == [True]


@pytest.mark.parametrize("least", [1.0, 1e-1, 1e-2])
@pytest.mark.parametrize("outputs", [1, 3])
def test_errors_are_within_the_tolerance(least, outputs):
    shared, support = moment(least=least), supports(16, 8)
    target = normal(16, outputs, 48, seed=5)
    found, explained, done = solve_all(shared, Splitting.of(shared, 8), support, target)
    expected = exact(shared, support, target)
    assert bool(done.all())
    # What is left is measured by the preconditioner, which is nearly H.
    assert float(excess(shared, found, expected).max()) < 4 * deflated.TOLERANCE
    least_loss = (expected * target).sum((1, 2))
    torch.testing.assert_close(explained, least_loss, rtol=4 * deflated.TOLERANCE, atol=0)
    assert bool((explained <= least_loss * (1 + 1e-12)).all())  # of weights that are no better


def test_it_says_which_have_not_converged():
    """Eigenvalues over four decades, and directions that care for no group: nothing to deflate."""
    shared, support = moment(least=1e-4), supports(16, 8)
    target = normal(16, 1, 48, seed=5)
    found, _, done = solve_all(shared, Splitting.of(shared, 8), support, target)
    error = excess(shared, found, exact(shared, support, target)).amax(1)
    assert 8 < int(done.sum()) < 16
    assert float(error[done].max()) < 4 * deflated.TOLERANCE
    assert float(error[~done].min()) > deflated.TOLERANCE / 4


@given(
    groups=st.integers(1, 6),
    height=st.integers(1, 7),
    number=st.integers(1, 9),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_any_shape(groups, height, number, outputs, seed):
    shared, support = moment(groups * height, 1e-2, seed), supports(number, groups, seed)
    target = normal(number, outputs, groups * height, seed=seed + 1)
    found, _, done = solve_all(shared, Splitting.of(shared, groups), support, target)
    kept = support.repeat_interleave(height, 1).unsqueeze(1).expand_as(found)
    assert bool(done.all())
    assert not bool(found[~kept].any())
    expected = exact(shared, support, target)
    assert float(excess(shared, found, expected).max()) < 4 * deflated.TOLERANCE


def test_targets_of_zero_have_weights_of_zero():
    shared, support = moment(), supports(4, 8)
    target = normal(4, 2, 48)
    target[1], target[2, 0] = 0.0, 0.0
    found, explained, done = solve_all(shared, Splitting.of(shared, 8), support, target)
    assert bool(done.all())
    assert not bool(found[1].any() or found[2, 0].any())
    assert float(explained[1]) == 0.0
    assert bool(found.isfinite().all())


def test_parts_of_a_batch_are_solved_alike(monkeypatch):
    shared, support, target = moment(), supports(7, 8), normal(7, 1, 48)
    splitting = Splitting.of(shared, 8)
    whole = solve_all(shared, splitting, support, target)
    monkeypatch.setattr(deflated, "_CHUNK_ENTRIES", 2 * directions(48) ** 2)
    parts = solve_all(shared, splitting, support, target)
    assert float(excess(shared, parts[0], whole[0]).max()) < 4 * deflated.TOLERANCE
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-7, atol=0)


def test_the_preconditioner_saves_most_of_the_steps(monkeypatch):
    """Inputs that share a few strong directions, as the features of a network do."""
    strong = normal(96, 8)
    shared = torch.eye(96, dtype=torch.float64) + 5 * strong @ strong.T
    support, target = supports(12, 8), normal(12, 1, 96, seed=3)
    splitting = Splitting.of(shared, 8)
    monkeypatch.setattr(deflated, "MOST_STEPS", 8)
    monkeypatch.setattr(deflated, "ROUNDS", 1)
    assert bool(solve_all(shared, splitting, support, target)[2].all())
    blind = Splitting(
        splitting.moment,
        torch.eye(12).expand(8, -1, -1),
        *(torch.zeros_like(t) for t in (splitting.leading, splitting.solved, splitting.products)),
    )
    assert not bool(solve_all(shared, blind, support, target)[2].any())


def test_a_moment_that_is_none_has_no_splitting():
    shared = moment()
    shared[3, 3] = -1.0
    assert Splitting.of(shared, 8) is None


def test_a_singular_moment_is_one_clear_error(monkeypatch):
    shared, support = moment(), supports(6, 8)
    shared[:, 3] = shared[3] = 0.0
    problem = RefitProblem(shared, normal(6, 48, 1), normal(6).abs() + 100, 8)
    monkeypatch.setattr(deflated, "sooner", lambda kept, *_: torch.ones_like(kept).bool())
    with pytest.raises(SolverError, match="raise damping"):
        problem.solve(support)


def test_small_systems_without_a_factor_end_no_run():
    """As rounding leaves some: these supports do without U, and what is done is done right."""
    shared, support, target = moment(), supports(16, 8), normal(16, 1, 48)
    splitting = Splitting.of(shared, 8)
    splitting.products[3, 0] = -1e6
    found, _, done = solve_all(shared, splitting, support, target)
    assert bool(done[~support[:, 3]].all())
    assert bool(done[support[:, 3]].any())
    error = excess(shared, found, exact(shared, support, target))
    assert float(error[done].max()) < 4 * deflated.TOLERANCE


def test_problems_are_solved_by_steps_where_factors_take_longer(monkeypatch):
    few = 8
    assert sooner(torch.tensor([0, 1, 10, 19]), 19, 4788, 1).tolist() == [False, False, True, False]
    assert not bool(sooner(torch.tensor([4]), few, 64, 1))
    shared, support = moment(), supports(9, few)
    problem = RefitProblem(shared, normal(9, 48, 2), normal(9, seed=7).abs() + 100, few)
    expected = problem.solve(support)
    monkeypatch.setattr(deflated, "sooner", lambda kept, *_: kept % 2 == 1)
    called = []
    monkeypatch.setattr(
        deflated,
        "solve_all",
        lambda *given: called.append(len(given[2])) or solve_all(*given),
    )
    found = problem.solve(support)
    assert called == [5]
    error = excess(shared, found[0].mT, expected[0].mT)
    assert float(error[support.sum(1) % 2 == 1].max()) < 4 * deflated.TOLERANCE
    assert float(error[support.sum(1) % 2 == 0].max()) < 1e-20
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0)


def test_what_does_not_converge_is_factored(monkeypatch):
    shared, support = moment(), supports(6, 8)
    problem = RefitProblem(shared, normal(6, 48, 1), normal(6).abs() + 100, 8)
    expected = problem.solve(support)
    monkeypatch.setattr(deflated, "sooner", lambda kept, *_: torch.ones_like(kept).bool())
    monkeypatch.setattr(deflated, "MOST_STEPS", 1)
    monkeypatch.setattr(deflated, "ROUNDS", 1)
    found = problem.solve(support)
    assert float(excess(shared, found[0].mT, expected[0].mT).max()) < 4 * deflated.TOLERANCE
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0)
