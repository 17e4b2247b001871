import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import SolverError
from crosspruner.solver import relaxed_scores, rpp

INF = math.inf


def draws(scores: list[float], keep: int, relax: float, number: int = 20_000) -> torch.Tensor:
    state = torch.tensor([scores], dtype=torch.float64).expand(number, -1)
    return rpp(state, keep, relax, torch.Generator().manual_seed(0))


def test_plain_projection_keeps_the_largest():
    state = torch.tensor([[3.0, 9.0, 1.0, 4.0], [0.0, -1.0, -2.0, 5.0]])
    expected = torch.tensor([[False, True, False, True], [True, False, False, True]])
    assert torch.equal(rpp(state, 2), expected)


def test_plain_projection_gives_ties_to_the_lower_index():
    state = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[False, True, True, False], [True, True, False, False]])
    assert torch.equal(rpp(state, 2), expected)


def test_plain_projection_consumes_no_randomness():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    rpp(torch.rand(4, 6), 3, 0.0, generator)
    relaxed_scores(torch.rand(4, 6), 3, 0.0, generator)
    assert torch.equal(generator.get_state(), before)


def test_draw_is_proportional_to_the_height_over_the_lowest_candidate():
    # keep 1, relax 3: candidates 6 5 4 2 with heights 4 3 2 0.
    share = draws([6, 5, 4, 2, 1, 0], keep=1, relax=3.0).double().mean(0)
    expected = torch.tensor([4 / 9, 3 / 9, 2 / 9, 0, 0, 0], dtype=torch.float64)
    assert torch.allclose(share, expected, atol=0.015)


def test_second_draw_is_without_replacement():
    # Candidates 6 5 4 2, heights 4 3 2 0; two draws. P(first pruned) = P(5 then 4) + P(4 then 5).
    share = draws([6, 5, 4, 2, 1], keep=2, relax=1.0).double().mean(0)
    pruned_six = 3 / 9 * 2 / 6 + 2 / 9 * 3 / 7
    pruned_five = 4 / 9 * 2 / 5 + 2 / 9 * 4 / 7
    expected = [1 - pruned_six, 1 - pruned_five, pruned_six + pruned_five, 0, 0]
    assert torch.allclose(share, torch.tensor(expected, dtype=torch.float64), atol=0.015)


def test_number_of_candidates_is_rounded_up_once():
    # 10 * (1 + 0.1) is 11.000000000000002 in floats: 11 candidates, not 12.
    kept = draws([float(20 - i) for i in range(20)], keep=10, relax=0.1, number=2000)
    assert not kept[:, 11:].any()
    assert kept[:, :10].all()  # the eleventh is the lowest candidate: height 0, never drawn


def test_tied_candidates_are_drawn_evenly():
    share = draws([1.0, 1.0, 1.0, 1.0, 0.0], keep=2, relax=1.0).double().mean(0)
    expected = torch.tensor([0.5, 0.5, 0.5, 0.5, 0], dtype=torch.float64)
    assert torch.allclose(share, expected, atol=0.015)


def test_infinite_scores_are_never_and_always_kept():
    kept = draws([-INF, 1.0, 2.0, INF, -INF, 3.0], keep=2, relax=5.0, number=500)
    assert not kept[:, [0, 4]].any()
    assert kept[:, 3].all()
    assert (kept.sum(1) == 2).all()


def test_keep_may_differ_by_row():
    keep = torch.tensor([0, 1, 4])
    kept = rpp(torch.rand(3, 4), keep, 1.0, torch.Generator().manual_seed(0))
    assert kept.sum(1).tolist() == [0, 1, 4]


def test_relaxed_scores_hand_the_same_values_out_anew():
    scores = torch.tensor([[5.0, 1.0, 4.0, 3.0, 2.0, -INF]]).expand(200, -1)
    generator = torch.Generator().manual_seed(1)
    relaxed = relaxed_scores(scores, 2, 1.0, generator)
    assert torch.equal(relaxed.sort(1).values, scores.sort(1).values)
    assert (relaxed[:, 5] == -INF).all()
    assert not torch.equal(relaxed, scores)


def test_relaxed_scores_and_rpp_make_the_same_draw():
    scores = torch.rand(50, 12, generator=torch.Generator().manual_seed(2))
    relaxed = relaxed_scores(scores, 5, 0.8, torch.Generator().manual_seed(7))
    drawn = rpp(scores, 5, 0.8, torch.Generator().manual_seed(7))
    assert torch.equal(rpp(relaxed, 5), drawn)
    assert not torch.equal(rpp(scores, 5), drawn)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_exactly_keep_ones_and_only_candidates(data):
    groups = data.draw(st.integers(1, 12))
    keep = data.draw(st.integers(0, groups))
    relax = data.draw(st.sampled_from([0.0, 0.1, 0.5, 2.0, 50.0]))
    row = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=groups, max_size=groups)
    state = torch.tensor([data.draw(row) for _ in range(3)], dtype=torch.float64)
    kept = rpp(state, keep, relax, torch.Generator().manual_seed(0))
    assert (kept.sum(1) == keep).all()
    candidates = min(groups, math.ceil(keep * (1 + relax) * (1 - 1e-12)))
    if keep:
        lowest = state.sort(1, descending=True).values[:, candidates - 1 : candidates]
        assert (state >= lowest)[kept].all()


def test_scale_and_shift_do_not_change_the_draw():
    state = torch.rand(8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = rpp(state, 4, 1.0, torch.Generator().manual_seed(5))
    two = rpp(1024 * state - 512, 4, 1.0, torch.Generator().manual_seed(5))
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_and_extreme_heights(dtype):
    state = torch.rand(6, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert (rpp(state, 20, 0.5, torch.Generator().manual_seed(0)).sum(1) == 20).all()
    steep = torch.tensor([[1e300, 1.0, 1e-300, 5e-324, 0.0, -1e300]], dtype=torch.float64)
    kept = rpp(steep.expand(50, -1), 3, 1.0, torch.Generator().manual_seed(0))
    assert (kept.sum(1) == 3).all()


@pytest.mark.parametrize(
    ("state", "keep", "relax", "message"),
    [
        (torch.rand(4), 2, 0.0, "shape"),
        (torch.rand(2, 4), 5, 0.0, "0..4"),
        (torch.rand(2, 4), -1, 0.0, "0..4"),
        (torch.rand(2, 4), 1.5, 0.0, "integer"),
        (torch.rand(2, 4), torch.tensor([1, 2, 3]), 0.0, "one per problem"),
        (torch.rand(2, 4), 2, -0.1, "relax"),
        (torch.rand(2, 4), 2, math.nan, "relax"),
        (torch.tensor([[1.0, math.nan]]), 1, 0.0, "NaN"),
        (torch.tensor([[1.0, -INF]]), 2, 0.0, "lower keep"),
        (torch.tensor([[INF, INF]]), 1, 0.0, "always kept"),
        (torch.ones(2, 4, dtype=torch.int64), 2, 0.0, "floating point"),
    ],
)
def test_bad_input_is_refused(state, keep, relax, message):
    with pytest.raises(SolverError, match=message):
        rpp(state, keep, relax)
