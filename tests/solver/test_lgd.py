import itertools
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import SolverError
from crosspruner.solver import lgd_rpp
from crosspruner.solver.exhaustive import best_of_all, is_small
from crosspruner.solver.greedy import greedy_elimination
from crosspruner.solver.lgd import largest_eigenvalue
from crosspruner.solver.swap import gram_loss, swap_descent


def correlated_gram(kind: str, batch: int, groups: int, seed: int) -> torch.Tensor:
    """Gram matrices of partial outputs drawn at random: (batch, groups, groups) float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "independent":
        outputs = normal(batch, 2 * groups, groups)
    elif kind == "fewer samples than groups":
        outputs = normal(batch, max(2, groups // 2), groups)
    elif kind == "two common factors":
        common = normal(batch, 4 * groups, 2) @ normal(batch, 2, groups)
        outputs = normal(batch, 4 * groups, groups) + 2 * common
    elif kind == "uneven":
        outputs = normal(batch, 2 * groups, groups) * normal(batch, 1, groups).exp()
    else:
        outputs = normal(batch, 4 * groups, groups)
        for group in range(1, groups):
            outputs[:, :, group] = 0.8 * outputs[:, :, group - 1] + 0.6 * outputs[:, :, group]
    return outputs.mT @ outputs / outputs.shape[1]


KINDS = [
    "independent",
    "fewer samples than groups",
    "two common factors",
    "uneven",
    "neighbours alike",
]


def enumerate_optimum(gram: torch.Tensor, linear: torch.Tensor, keep: int) -> torch.Tensor:
    """Lowest loss over all masks with `keep` ones, constant left out. (B,)"""
    groups = gram.shape[1]
    supports = torch.tensor(list(itertools.combinations(range(groups), keep)))
    masks = torch.zeros(len(supports), groups, dtype=gram.dtype).scatter_(1, supports, 1.0)
    best = [((masks @ g) * masks).sum(1) - 2 * masks @ h for g, h in zip(gram, linear, strict=True)]
    return torch.stack(best).amin(1)


def excess(gram: torch.Tensor, keep: int, mask: torch.Tensor) -> torch.Tensor:
    """How far the loss of `mask` lies above the optimum, as a fraction of it. (B,)"""
    linear, constant = gram.sum(-1), gram.sum((1, 2))
    optimum = enumerate_optimum(gram, linear, keep) + constant
    return (gram_loss(gram, linear, mask) + constant) / optimum - 1


def test_by_hand_pairs_that_cancel_go_together():
    # Z_0 + Z_1 = 0 although both are large: pruning both costs least. Magnitude keeps them.
    outputs = torch.tensor([[5.0, -5.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    gram = (outputs.T @ outputs)[None]
    assert lgd_rpp(gram, keep=2).tolist() == [[False, False, True, True]]


def test_by_hand_linear_term_decides():
    # The target is Z_2 alone: with one group to keep, that one, whatever the energies.
    gram = torch.diag(torch.tensor([9.0, 4.0, 1.0]))[None]
    linear = torch.tensor([[0.0, 0.0, 1.0]])
    assert lgd_rpp(gram, 1, linear).tolist() == [[False, False, True]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exhaustive", [True, False])
def test_finds_the_optimum_of_enumerated_problems(kind, exhaustive, monkeypatch):
    groups, keep = 14, 6
    if not exhaustive:
        monkeypatch.setattr("crosspruner.solver.exhaustive.MAX_WORK", 0)
    gram = correlated_gram(kind, 8, groups, seed=groups)
    mask = lgd_rpp(gram, keep, restarts=32)
    assert excess(gram, keep, mask).max() < 1e-7


@pytest.mark.slow
def test_200_enumerated_problems_are_solved_exactly(monkeypatch):
    monkeypatch.setattr("crosspruner.solver.exhaustive.MAX_WORK", 0)
    above = torch.cat(
        [
            excess(gram, keep, lgd_rpp(gram, keep, restarts=32))
            for kind, (groups, keep) in itertools.product(
                KINDS, [(12, 6), (14, 7), (16, 8), (18, 9), (20, 10), (20, 8), (16, 4), (20, 6)]
            )
            for gram in [correlated_gram(kind, 5, groups, seed=100 + groups + keep)]
        ]
    )
    assert len(above) == 200
    assert (above < 1e-7).double().mean() >= 0.99
    assert above.max() <= 0.01


def above_greedy(gram: torch.Tensor, keep: int, **options) -> torch.Tensor:
    linear, constant = gram.sum(-1), gram.sum((1, 2))
    rival = swap_descent(gram, linear, greedy_elimination(gram, linear, keep))
    rival_loss = gram_loss(gram, linear, rival) + constant
    return (gram_loss(gram, linear, lgd_rpp(gram, keep, **options)) + constant) / rival_loss - 1


@pytest.mark.parametrize("kind", KINDS)
def test_never_above_greedy_with_swaps(kind):
    gram = correlated_gram(kind, 6, 64, seed=1)
    assert above_greedy(gram, 32, restarts=2, steps=30).max() <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("groups", [64, 256, 512])
def test_large_problems_end_well_below_greedy_with_swaps(groups):
    hard = [correlated_gram(kind, 4, groups, seed=7) for kind in KINDS[1:3]]
    gain = torch.cat([above_greedy(gram, groups // 2) for gram in hard])
    assert gain.max() <= 1e-12
    assert gain.median() <= -0.15


def test_relaxation_dense_state_and_swaps_each_help():
    gram = correlated_gram("two common factors", 40, 32, seed=4)
    linear, constant = gram.sum(-1), gram.sum((1, 2))

    def mean_loss(**options) -> float:
        mask = lgd_rpp(gram, 16, **options)
        return ((gram_loss(gram, linear, mask) + constant) / constant).mean().item()

    full = mean_loss()
    assert full < mean_loss(relax=0.0)
    assert full < mean_loss(swaps=False)
    assert full < mean_loss(restarts=1, kicks=0)


@given(
    groups=st.integers(1, 9),
    batch=st.integers(1, 4),
    restarts=st.integers(1, 3),
    steps=st.integers(0, 6),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_exactly_keep_for_any_problem(groups, batch, restarts, steps, data):
    few = data.draw(st.sampled_from([0, 10, 4096]))
    keep = torch.tensor(data.draw(st.lists(st.integers(0, groups), min_size=batch, max_size=batch)))
    seed = data.draw(st.integers(0, 99))
    gram = correlated_gram(data.draw(st.sampled_from(KINDS)), batch, groups, seed)
    with mock.patch("crosspruner.solver.exhaustive.MAX_WORK", few):
        mask = lgd_rpp(gram, keep, steps=steps, restarts=restarts)
    assert mask.dtype == torch.bool
    assert torch.equal(mask.sum(1), keep)


@given(seed=st.integers(0, 50), factor=st.sampled_from([2.0**-60, 2.0**-8, 2.0**40]))
@settings(max_examples=15, deadline=None)
def test_unit_of_the_gram_does_not_matter(seed, factor):
    gram = correlated_gram("two common factors", 2, 18, seed)
    assert torch.equal(lgd_rpp(gram, 9), lgd_rpp(factor * gram, 9))


def test_relabelling_groups_relabels_the_mask():
    gram = correlated_gram("independent", 8, 18, seed=3)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    mask = lgd_rpp(gram, 9, restarts=16)
    relabelled = lgd_rpp(gram[:, order][:, :, order], 9, restarts=16)
    assert torch.equal(relabelled, mask[:, order])


def test_equal_seeds_give_equal_masks_and_leave_the_global_generator_alone():
    gram = correlated_gram("two common factors", 6, 40, seed=0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = lgd_rpp(gram, 20, generator=torch.Generator().manual_seed(9))
    assert torch.equal(first, lgd_rpp(gram, 20, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(lgd_rpp(gram, 20), lgd_rpp(gram, 20))
    assert torch.equal(torch.get_rng_state(), before)


def test_float32_grams_and_dead_groups_are_fine():
    gram = correlated_gram("independent", 3, 8, seed=0).float()
    gram[:, 2] = 0
    gram[:, :, 2] = 0
    gram[2] = 0
    mask = lgd_rpp(gram, 4)
    assert (mask.sum(1) == 4).all()
    assert not mask[:2, 2].any()


def test_no_problems_at_all():
    assert lgd_rpp(torch.zeros(0, 5, 5), 2).shape == (0, 5)
    assert lgd_rpp(torch.zeros(0, 50, 50), 20).shape == (0, 50)


@given(groups=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60, deadline=None)
def test_all_masks_by_halves_is_the_optimum(groups, seed, data):
    keep = data.draw(st.integers(0, groups))
    gram = correlated_gram(data.draw(st.sampled_from(KINDS)), 3, groups, seed)
    linear = torch.randn(3, groups, generator=torch.Generator().manual_seed(seed)).double()
    supports = list(itertools.combinations(range(groups), keep))
    every = torch.zeros(len(supports), groups, dtype=torch.bool)
    for row, support in enumerate(supports):
        every[row, list(support)] = True
    least = gram_loss(gram, linear, every.expand(3, -1, -1)).amin(1)
    with mock.patch("crosspruner.solver.exhaustive._CHUNK_LOSSES", data.draw(st.integers(1, 99))):
        mask = best_of_all(gram, linear, keep)
    assert torch.equal(mask.sum(1), torch.full((3,), keep))
    torch.testing.assert_close(gram_loss(gram, linear, mask), least)


def test_what_is_worth_trying_all_of():
    assert is_small(20, 10)
    assert is_small(64, 2)
    assert is_small(64, 62)
    assert not is_small(26, 13)
    assert not is_small(2000, 2)  # few masks, but each is wide
    assert is_small(512, 512)


def test_small_and_large_numbers_of_masks_in_one_batch():
    gram = correlated_gram("independent", 6, 30, seed=2)
    keep = torch.tensor([1, 15, 29, 30, 0, 14])
    mask = lgd_rpp(gram, keep)
    assert torch.equal(mask.sum(1), keep)
    for row in (0, 2):
        assert excess(gram[row : row + 1], int(keep[row]), mask[row : row + 1]).item() < 1e-9


def test_inputs_are_left_alone():
    gram = correlated_gram("uneven", 2, 6, seed=0)
    copy = gram.clone()
    lgd_rpp(gram, 3)
    assert torch.equal(gram, copy)


def test_the_largest_eigenvalue_may_lie_apart_from_the_longest_column():
    # Blocks of eigenvalue 3, and 4 and 0: the columns are of length 3 and 8 ** 0.5.
    gram = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 2.0], [0.0, 2.0, 2.0]]]).double()
    assert largest_eigenvalue(gram).item() == pytest.approx(4)
    gram = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, -2.0], [0.0, -2.0, 2.0]]]).double()
    assert largest_eigenvalue(gram).item() == pytest.approx(4)


@pytest.mark.parametrize("swaps", [False, True])
def test_without_energy_the_linear_part_decides(swaps):
    linear = torch.tensor([[100.0, 400.0, 300.0, 200.0]])
    mask = lgd_rpp(torch.zeros(1, 4, 4), 2, linear, swaps=swaps)
    assert mask.tolist() == [[False, True, True, False]]


@given(seed=st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_largest_eigenvalue(seed):
    gram = correlated_gram("two common factors", 3, 7, seed)
    expected = torch.linalg.eigvalsh(gram)[:, -1]
    assert torch.allclose(largest_eigenvalue(gram), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram": torch.ones(4, 4)}, r"gram\[None\]"),
        ({"gram": torch.ones(1, 4, 3)}, "shape"),
        ({"gram": torch.full((1, 4, 4), torch.nan)}, "NaN"),
        ({"linear": torch.ones(1, 3)}, "linear must have shape"),
        ({"linear": torch.full((1, 4), torch.inf)}, "NaN or Inf"),
        ({"keep": 5}, r"0\.\.4"),
        ({"keep": 2.0}, "integer"),
        ({"restarts": 0}, "restarts >= 1"),
        ({"steps": -1}, "steps >= 0"),
        ({"relax": -0.5}, "relax >= 0"),
        ({"kicks": -1}, "kicks >= 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"gram": torch.eye(4)[None], "keep": 2} | change
    with pytest.raises(SolverError, match=message):
        lgd_rpp(**arguments)
