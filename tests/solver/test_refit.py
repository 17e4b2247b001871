"""Refitted weights: by hand, on samples, in chunks; both forms of a layer problem; bad input."""

import itertools

import pytest
import torch

from crosspruner.errors import SolverError
from crosspruner.solver import LayerProblem, RefitProblem, lgd_rpp_refit
from crosspruner.solver.blocks import join_weights


def random_layer(rows: list[int], num_outputs: int, samples: int = 200, seed: int = 0):
    """Moment (D, D) and weight (D, O) of a layer with correlated, rectified inputs."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(rows)
    mixing = torch.eye(size, dtype=torch.float64) + 0.3 * torch.randn(
        size, size, generator=generator, dtype=torch.float64
    )
    inputs = torch.randn(samples, size, generator=generator, dtype=torch.float64) @ mixing
    inputs = inputs.relu()
    weight = torch.randn(size, num_outputs, generator=generator, dtype=torch.float64)
    return inputs.T @ inputs / samples, weight, torch.tensor(rows)


def random_problem(
    groups: int = 6, height: int = 4, batch: int = 3, outputs: int = 2, seed: int = 0
) -> RefitProblem:
    moment, weight, rows = random_layer([height] * groups, batch * outputs, seed=seed)
    return RefitProblem.from_moments(
        moment, weight, rows, torch.arange(batch * outputs).view(batch, outputs)
    )


def every_mask(groups: int, keep: int) -> torch.Tensor:
    supports = torch.tensor(list(itertools.combinations(range(groups), keep)))
    return torch.zeros(len(supports), groups, dtype=torch.bool).scatter_(1, supports, True)


def enumerate_refits(problem: RefitProblem, keep: int) -> torch.Tensor:
    """Lowest refitted loss over all masks with `keep` groups. (B,)"""
    masks = every_mask(problem.num_groups, keep)
    losses = [problem.solve(mask.expand(problem.num_problems, -1))[1] for mask in masks]
    return torch.stack(losses).amin(0)


def test_refit_by_hand():
    # Two inputs that always agree, one output that reads the first: either can replace the other.
    moment = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    weight = torch.tensor([[2.0], [0.0]])
    problem = RefitProblem.from_moments(
        moment, weight, torch.tensor([1, 1]), torch.tensor([[0]]), damping=0.0
    )
    for kept in ([True, False], [False, True]):
        weights, loss = problem.solve(torch.tensor([kept]))
        assert torch.allclose(weights[0, :, 0], 2.0 * torch.tensor(kept).double(), atol=1e-8)
        assert loss.item() == pytest.approx(0, abs=1e-7)
    assert problem.solve(torch.tensor([[False, False]]))[1].item() == pytest.approx(4)


def test_damping_pulls_toward_the_old_weights():
    # Inputs grew twofold since the weight 3 was right: 1.5 undamped, 2.25 with the ridge 4.
    problem = RefitProblem.from_moments(
        torch.tensor([[4.0]]),
        torch.tensor([[3.0]]),
        torch.tensor([1]),
        torch.tensor([[0]]),
        cross=torch.tensor([[6.0]]),
        energy=torch.tensor([9.0]),
        damping=1.0,
    )
    weights, loss = problem.solve(torch.tensor([[True]]))
    assert weights.item() == pytest.approx(2.25)
    # E (Y - 2.25 X~)^2 + 4 (2.25 - 3)^2 with E Y^2 = 9, E X~Y = 6, E X~^2 = 4.
    assert loss.item() == pytest.approx(9 - 2 * 2.25 * 6 + 2.25**2 * 4 + 4 * 0.75**2)


def test_solve_is_least_squares_on_the_samples():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    targets = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    rows = torch.tensor([3, 3, 1])
    outputs = torch.tensor([[2, 0], [1, -1]])
    problem = RefitProblem.from_moments(
        inputs.T @ inputs, weight, rows, outputs, inputs.T @ targets, targets.square().sum(0), 1e-9
    )
    mask = torch.tensor([[True, False, True], [False, True, False]])
    weights, loss = problem.solve(mask)
    joined = join_weights(weights, rows, outputs, 4)
    assert torch.equal(joined[3:6, [0, 2]], torch.zeros(3, 2).double())
    assert torch.equal(joined[:, 3], torch.zeros(7).double())
    for problem_index, kept_rows in ((0, [0, 1, 2, 6]), (1, [3, 4, 5])):
        own = [o for o in outputs[problem_index].tolist() if o >= 0]
        expected = torch.linalg.lstsq(inputs[:, kept_rows], targets[:, own]).solution
        assert torch.allclose(joined[kept_rows][:, own], expected, atol=1e-6)
        error = targets[:, own] - inputs[:, kept_rows] @ expected
        assert loss[problem_index].item() == pytest.approx(error.square().sum().item(), rel=1e-6)


def test_chunks_do_not_change_the_refit(monkeypatch):
    problem = random_problem(groups=6, height=3, batch=7)
    mask = torch.rand(7, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = problem.solve(mask)
    monkeypatch.setattr("crosspruner.solver.supports.CHUNK_ENTRIES", 1)
    for one, other in zip(whole, problem.solve(mask), strict=True):
        assert torch.allclose(one, other)


def test_chunks_do_not_change_the_search(monkeypatch):
    problem = random_problem(groups=6, height=3, batch=7)
    whole = lgd_rpp_refit(problem, 3, restarts=0, exact=False)
    monkeypatch.setattr("crosspruner.solver.pivot.TABLE_ENTRIES", 1)
    assert torch.equal(lgd_rpp_refit(problem, 3, restarts=0, exact=False), whole)


def test_the_two_forms_of_a_layer_problem_agree():
    moment, weight, rows = random_layer([3, 2, 4], 5, seed=4)
    outputs = torch.tensor([[0, 3], [1, 4], [2, -1]])
    layer = LayerProblem.from_moments(moment, weight, rows, outputs)
    edges = [0, 3, 5, 9]
    mask = torch.tensor([[True, False, True], [False, True, True], [True, True, False]])
    for row in range(3):
        own = [o for o in outputs[row].tolist() if o >= 0]
        pruned = weight[:, own].clone()
        for group in range(3):
            if not mask[row, group]:
                pruned[edges[group] : edges[group + 1]] = 0
        difference = pruned - weight[:, own]
        loss = (difference * (moment @ difference)).sum()
        energy = (weight[:, own] * (moment @ weight[:, own])).sum()
        assert layer.relative_loss(mask)[row].item() == pytest.approx((loss / energy).item())
        assert layer.norms[row].tolist() == pytest.approx(
            [weight[edges[g] : edges[g + 1], own].square().sum().item() for g in range(3)]
        )


def test_asymmetric_targets_enter_the_linear_term():
    moment, weight, rows = random_layer([2, 2], 2, seed=6)
    outputs = torch.tensor([[0], [1]])
    cross = 2 * moment @ weight
    layer = LayerProblem.from_moments(moment, weight, rows, outputs, cross=cross)
    plain = LayerProblem.from_moments(moment, weight, rows, outputs)
    assert torch.allclose(layer.gram, plain.gram)
    assert torch.allclose(layer.linear, 2 * plain.linear)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moment": torch.eye(3)}, "moment must be"),
        ({"group_rows": torch.tensor([2, 3])}, "sum to 4 rows"),
        ({"group_rows": torch.tensor([4, 0])}, "positive"),
        ({"cross": torch.ones(4, 1)}, "cross must have the shape"),
        ({"moment": torch.full((4, 4), torch.nan)}, "NaN or Inf"),
        ({"weight": torch.full((4, 2), torch.inf)}, "NaN or Inf"),
        ({"damping": -1.0}, "damping"),
    ],
)
def test_bad_moments_are_refused(change, message):
    arguments = {
        "moment": torch.eye(4),
        "weight": torch.ones(4, 2),
        "group_rows": torch.tensor([2, 2]),
        "outputs": torch.tensor([[0], [1]]),
    } | change
    with pytest.raises(SolverError, match=message):
        LayerProblem.from_moments(**arguments)


@pytest.mark.parametrize("change", [{"steps": -1}, {"restarts": -1}, {"relax": -0.1}, {"rank": 0}])
def test_bad_arguments_are_refused(change):
    with pytest.raises(SolverError, match=next(iter(change))):
        lgd_rpp_refit(random_problem(), 2, **change)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_moments_of_their_own_are_inverted_one_by_one(batch):
    problem = random_problem(groups=3, height=2, batch=5)
    own = problem.moment * torch.arange(1.0, 6.0).double().view(-1, 1, 1)
    each = RefitProblem(own[:batch], problem.target[:batch], problem.constant[:batch], 3)
    assert not each.shared
    torch.testing.assert_close(each.inverse, torch.linalg.inv(own[:batch]))
