import numpy as np
import pytest
import torch
from sklearn.linear_model import lasso_path as sklearn_lasso_path

from crosspruner.errors import SolverError
from crosspruner.solver import SOLVERS, LayerProblem, choose_mask


def problem(batch: int = 4, groups: int = 10, seed: int = 0) -> LayerProblem:
    """A layer of `batch` outputs and groups of two correlated inputs each."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(50 + 4 * groups, 2 * groups, generator=generator, dtype=torch.float64)
    inputs = inputs + 0.6 * inputs.roll(1, dims=1)
    return LayerProblem.from_moments(
        inputs.T @ inputs,
        torch.randn(2 * groups, batch, generator=generator, dtype=torch.float64),
        torch.full((groups,), 2),
        torch.arange(batch).view(batch, 1),
    )


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("keep", [0, 1, 6, 10])
def test_every_solver_keeps_exactly_keep(solver, keep):
    mask = choose_mask(problem(), keep, solver)
    assert mask.dtype == torch.bool
    assert mask.shape == (4, 10)
    assert (mask.sum(1) == keep).all()


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_every_solver_takes_another_number_per_row(solver):
    keep = torch.tensor([0, 3, 7, 10])
    assert torch.equal(choose_mask(problem(), keep, solver).sum(1), keep)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_every_solver_is_reproducible_and_survives_a_dead_layer(solver):
    first, second = (choose_mask(problem(seed=1), 5, solver) for _ in range(2))
    assert torch.equal(first, second)
    zero = LayerProblem.from_moments(
        torch.zeros(6, 6), torch.zeros(6, 2), torch.ones(6).long(), torch.tensor([[0], [1]])
    )
    assert (choose_mask(zero, 3, solver).sum(1) == 3).all()


@pytest.mark.parametrize("solver", ["greedy", "lgd_rpp"])
def test_choosing_for_the_refit_lowers_the_refitted_loss(solver):
    given = problem(batch=30, groups=12, seed=2)
    loss = {
        refit: given.refit.solve(choose_mask(given, 6, solver, refit=refit))[1].sum()
        for refit in (False, True)
    }
    assert loss[True] < loss[False]


def test_solvers_without_a_refit_form_ignore_the_flag():
    given = problem(seed=3)
    for solver in ("random", "magnitude", "taylor", "lasso", "lgd_hard", "obs_group"):
        plain, flagged = (choose_mask(given, 5, solver, refit=refit) for refit in (False, True))
        assert torch.equal(plain, flagged)


def test_magnitude_by_hand():
    norms = torch.tensor([[3.0, 1.0, 2.0, 2.0]])
    given = LayerProblem(torch.eye(4)[None], torch.ones(1, 4), norms=norms)
    assert choose_mask(given, 2, "magnitude").tolist() == [[True, False, True, False]]


def test_taylor_by_hand():
    # Alone, pruning 0, 1, 2 costs 1, 4, 2 in the layer loss: independent groups of that energy.
    gram = torch.diag(torch.tensor([1.0, 4.0, 2.0]))[None]
    layer_loss = LayerProblem(gram, gram.sum(-1))
    assert choose_mask(layer_loss, 1, "taylor").tolist() == [[False, True, False]]
    task_loss = LayerProblem(gram, gram.sum(-1), saliency=torch.tensor([[-9.0, 4.0, 2.0]]))
    assert choose_mask(task_loss, 1, "taylor").tolist() == [[True, False, False]]


def test_random_is_even():
    flat = LayerProblem(torch.eye(4).expand(4000, -1, -1), torch.ones(4000, 4))
    share = choose_mask(flat, 1, "random").double().mean(0)
    assert torch.allclose(share, torch.full((4,), 0.25, dtype=torch.float64), atol=0.03)


def test_lasso_keeps_what_scikit_learn_keeps():
    given = problem(batch=6, groups=8, seed=3)
    for keep in (2, 4, 6):
        ours = choose_mask(given, keep, "lasso", options={"stages": 40, "iterations": 400})
        for row in range(6):
            # With X = chol(G)' and y = solve(X', h) scikit-learn sees the same problem, 1/n scaled.
            factor = torch.linalg.cholesky(given.gram[row])
            target = torch.linalg.solve_triangular(factor, given.linear[row, :, None], upper=False)
            path = sklearn_lasso_path(
                factor.T.numpy(), target.flatten().numpy(), alphas=np.geomspace(30, 1e-3, 400)
            )[1]
            numbers = (path != 0).sum(0)
            if keep in numbers:
                kept = path[:, np.argmax(numbers == keep)] != 0
                assert ours[row].tolist() == kept.tolist()


def test_lasso_of_groups_apart_by_hand():
    # Seven outputs alike and one 1.1 times as large: while that one enters, it takes up what the
    # seven have in common. The ninth stands apart, with the longest column of all.
    outputs = torch.tensor([1.0] * 7 + [1.1, 0.0], dtype=torch.float64)
    gram = outputs.outer(outputs)[None]
    gram[0, 8, 8] = 3.5
    mask = choose_mask(LayerProblem(gram, gram.sum(-1)), 2, "lasso")
    assert mask.nonzero()[:, 1].tolist() == [7, 8]


def test_lgd_hard_is_lgd_without_chance():
    given = problem(seed=5)
    one = choose_mask(given, 5, "lgd_hard", torch.Generator().manual_seed(0))
    two = choose_mask(given, 5, "lgd_hard", torch.Generator().manual_seed(1))
    assert torch.equal(one, two)


def test_better_solvers_lose_less():
    given = problem(batch=40, groups=24, seed=7)
    loss = {
        solver: given.relative_loss(choose_mask(given, 12, solver)).mean().item()
        for solver in ("random", "taylor", "greedy", "lgd_rpp")
    }
    assert loss["lgd_rpp"] < loss["greedy"] < loss["taylor"] < loss["random"]


def test_relative_loss_by_hand():
    gram = torch.diag(torch.tensor([1.0, 3.0]))[None]
    given = LayerProblem(gram, gram.sum(-1), energy=gram.sum((1, 2)))
    masks = [[[True, True]], [[False, True]], [[False, False]]]
    losses = [given.relative_loss(torch.tensor(mask)).item() for mask in masks]
    assert losses == [0.0, 0.25, 1.0]


def test_errors_name_the_way_out():
    bare = LayerProblem(torch.eye(3)[None], torch.ones(1, 3))
    with pytest.raises(SolverError, match="unknown solver 'lgd'; choose one of: random, magnitude"):
        choose_mask(bare, 1, "lgd")
    with pytest.raises(SolverError, match="give norms"):
        choose_mask(bare, 1, "magnitude")
    with pytest.raises(SolverError, match=r"lgd_rpp.*restart_count"):
        choose_mask(bare, 1, options={"restart_count": 3})
    for solver, refit in (("obs_group", False), ("lgd_rpp", True)):
        with pytest.raises(SolverError, match="from_moments"):
            choose_mask(bare, 1, solver, refit=refit)
    with pytest.raises(SolverError, match="energy"):
        bare.relative_loss(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(SolverError, match=r"norms must have shape \(1, 3\)"):
        LayerProblem(torch.eye(3)[None], torch.ones(1, 3), norms=torch.ones(3))
    with pytest.raises(SolverError, match="gram must have shape"):
        LayerProblem(torch.eye(3), torch.ones(1, 3))
