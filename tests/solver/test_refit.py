import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import SolverError
from crosspruner.solver import LayerProblem, RefitProblem, lgd_rpp_refit, obs_group
from crosspruner.solver.blocks import join_weights
from crosspruner.solver.exhaustive import best_of_all_refit
from crosspruner.solver.pivot import PivotTable
from crosspruner.solver.reduce import condense_targets, reduce_problem


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


@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 100),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_pivots_agree_with_solving_anew(rows, seed, data):
    moment, weight, group_rows = random_layer(rows, 5, seed=seed)
    problem = RefitProblem.from_moments(
        moment, weight, group_rows, torch.tensor([[0, 1], [4, 2], [3, -1]])
    )
    table = PivotTable(problem)
    masks = st.lists(st.booleans(), min_size=3 * len(rows), max_size=3 * len(rows))
    for _ in range(2):
        mask = torch.tensor(data.draw(masks)).view(3, len(rows))
        table.move_to(mask)
        assert torch.equal(table.mask, mask)
        loss = problem.solve(mask)[1]
        assert torch.allclose(table.loss, loss, rtol=1e-7, atol=1e-7)
        worth = table.scores()
        for group in range(len(rows)):
            other = mask.clone()
            other[:, group] ^= True
            change = (problem.solve(other)[1] - loss).abs()
            assert torch.allclose(worth[:, group], change, rtol=1e-6, atol=1e-7)


def test_best_swap_is_the_best_of_all_exchanges():
    problem = random_problem(groups=6, height=3)
    table = PivotTable(problem)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    table.move_to(mask)
    change, kept, pruned = table.best_swap(shortlist=6)
    loss = problem.solve(mask)[1]
    assert change[2] == torch.inf
    for row in range(2):
        changes = {}
        for a, b in itertools.product(
            mask[row].nonzero().flatten().tolist(), (~mask[row]).nonzero().flatten().tolist()
        ):
            other = mask.clone()
            other[row, a], other[row, b] = False, True
            changes[a, b] = (problem.solve(other)[1] - loss)[row].item()
        best = min(changes, key=changes.__getitem__)
        assert (kept[row].item(), pruned[row].item()) == best
        assert change[row].item() == pytest.approx(changes[best])


def test_rows_may_be_toggled_in_any_order():
    problem = random_problem(groups=5, height=2, batch=3)
    table = PivotTable(problem)
    table.toggle(torch.tensor([4, 0, 1]), torch.tensor([2, 0, 1]))
    table.toggle(torch.tensor([3, 2]), torch.tensor([2, 0]))
    pruned = (~table.mask).nonzero().tolist()
    assert pruned == [[0, 0], [0, 2], [1, 1], [2, 3], [2, 4]]
    torch.testing.assert_close(table.loss, problem.solve(table.mask)[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_hold_after_a_descent(dtype):
    exact = dtype == torch.float64
    for seed in range(30):  # rows run dry in every order
        problem = random_problem(groups=14, height=2, batch=2, outputs=1, seed=seed)
        table = PivotTable(problem, dtype)
        table.move_to(torch.arange(14).expand(2, -1) < 7)
        before = problem.solve(table.mask)[1]
        table.descend(shortlist=2)
        loss = problem.solve(table.mask)[1]
        assert (loss <= before * (1 + 1e-4)).all()
        torch.testing.assert_close(table.loss, loss, rtol=1e-8 if exact else 1e-2, atol=1e-9)
        assert torch.equal(table.mask.sum(1), torch.tensor([7, 7]))


def test_what_float32_cannot_factor_is_searched_in_float64(monkeypatch):
    problem, tried = random_problem(groups=8, height=3, batch=4), []

    def table(part, dtype):
        tried.append(dtype)
        if dtype == torch.float32:
            raise SolverError("too close to singular")
        return PivotTable(part, dtype)

    expected = lgd_rpp_refit(problem, 4, exact=False)
    monkeypatch.setattr("crosspruner.solver.lgd_refit.PivotTable", table)
    mask = lgd_rpp_refit(problem, 4, exact=False)
    assert tried == [torch.float32, torch.float64]
    losses = (problem.solve(each)[1] for each in (mask, expected))
    torch.testing.assert_close(*losses)


def test_descend_ends_where_no_exchange_helps():
    problem = random_problem(groups=8, height=3, batch=5, seed=2)
    table = PivotTable(problem)
    start = torch.zeros(5, 8, dtype=torch.bool)
    for row, number in enumerate([1, 3, 4, 7, 8]):
        start[row, :number] = True
    table.move_to(start)
    before = table.loss.clone()
    table.descend(shortlist=2)
    assert torch.equal(table.mask.sum(1), start.sum(1))
    assert (table.loss <= before + 1e-12).all()
    assert (table.best_swap(shortlist=8)[0] >= -1e-9).all()


def test_elimination_by_hand():
    # Independent inputs of energy 1, outputs read them with weights 3, 1, 2: the least goes first.
    problem = RefitProblem.from_moments(
        torch.eye(3),
        torch.tensor([[3.0], [1.0], [2.0]]),
        torch.tensor([1, 1, 1]),
        torch.tensor([[0]]),
    )
    assert obs_group(problem, 2).tolist() == [[True, False, True]]
    assert obs_group(problem, 1).tolist() == [[True, False, False]]


def test_copies_of_an_input_are_pruned_for_nothing():
    # Inputs 0 and 1 are the same signal with large weights; 2 is weak but has no substitute.
    signal = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = signal[:, [0, 0, 1]]
    moment = inputs.T @ inputs / 100
    weight = torch.tensor([[5.0], [5.0], [1.0]])
    problem = RefitProblem.from_moments(
        moment, weight, torch.tensor([1, 1, 1]), torch.tensor([[0]]), damping=1e-6
    )
    for mask in (lgd_rpp_refit(problem, 2), obs_group(problem, 2)):
        assert mask[0, 2]
        assert problem.solve(mask)[1].item() < 1e-3


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


def test_chunks_do_not_change_the_refit(monkeypatch):
    problem = random_problem(groups=6, height=3, batch=7)
    mask = torch.rand(7, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = problem.solve(mask)
    monkeypatch.setattr("crosspruner.solver.refit.CHUNK_ENTRIES", 1)
    for one, other in zip(whole, problem.solve(mask), strict=True):
        assert torch.allclose(one, other)


def test_chunks_do_not_change_the_search(monkeypatch):
    problem = random_problem(groups=6, height=3, batch=7)
    whole = lgd_rpp_refit(problem, 3, restarts=0, exact=False)
    monkeypatch.setattr("crosspruner.solver.pivot.TABLE_ENTRIES", 1)
    assert torch.equal(lgd_rpp_refit(problem, 3, restarts=0, exact=False), whole)


def test_stand_in_is_exact_at_full_rank_and_an_upper_bound_below():
    problem = random_problem(groups=6, height=5, batch=4, seed=1)
    mask = every_mask(6, 3)[:4]
    loss = problem.solve(mask)[1]
    full = reduce_problem(problem, 5).solve(mask)[1]
    assert torch.allclose(full, loss, rtol=1e-7)
    previous = torch.full_like(loss, torch.inf)
    for rank in (2, 3, 4):
        bound = reduce_problem(problem, rank).solve(mask)[1]
        assert (bound >= loss - 1e-9).all()
        assert (bound <= previous + 1e-9).all() or rank > 2
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


def test_masks_from_the_stand_in_are_nearly_as_good():
    problem = random_problem(groups=10, height=8, batch=10, seed=3)
    exact = problem.solve(lgd_rpp_refit(problem, 5))[1].sum()
    small = problem.solve(lgd_rpp_refit(problem, 5, rank=4))[1].sum()
    dropped = problem.solve(every_mask(10, 5)[:10])[1].sum()
    assert small - exact < 0.1 * (dropped - exact)


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
