import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspruner.errors import SolverError
from crosspruner.solver import LayerProblem, allocate, loss_path


def layer(groups: int = 5, batch: int = 3, seed: int = 0) -> LayerProblem:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(60, 2 * groups, generator=generator, dtype=torch.float64)
    weight = torch.randn(2 * groups, batch, generator=generator, dtype=torch.float64)
    return LayerProblem.from_moments(
        inputs.T @ inputs, weight, torch.full((groups,), 2), torch.arange(batch).view(-1, 1)
    )


def test_allocate_by_hand():
    # The second problem loses little by going from 2 to 1, so it gives a group away.
    losses = torch.tensor([[9.0, 4.0, 0.0], [9.0, 1.0, 0.0]])
    assert allocate(losses, 3).tolist() == [2, 1]
    assert allocate(losses, 2).tolist() == [1, 1]
    assert allocate(losses, 2, least=0).tolist() == [1, 1]
    assert allocate(losses, 1, least=0).tolist() == [0, 1]


@given(
    losses=st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=4), min_size=1, max_size=4),
    least=st.integers(0, 2),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_allocate_is_optimal(losses, least, data):
    table = torch.tensor(losses, dtype=torch.float64)
    total = data.draw(st.integers(least * len(losses), 3 * len(losses)))
    keep = allocate(table, total, least)
    assert int(keep.sum()) == total
    assert int(keep.min()) >= least
    options = itertools.product(range(least, 4), repeat=len(losses))
    best = min(
        sum(row[k] for row, k in zip(losses, choice, strict=True))
        for choice in options
        if sum(choice) == total
    )
    assert table.gather(1, keep[:, None]).sum().item() == pytest.approx(best)


@pytest.mark.parametrize("total", [2, 13])
def test_allocate_refuses_what_cannot_be_kept(total):
    with pytest.raises(SolverError, match=r"total must lie in 3\.\.12"):
        allocate(torch.zeros(3, 5), total)


@pytest.mark.parametrize("refit", [False, True])
def test_loss_path_ends_at_the_full_and_the_empty_mask(refit):
    given_layer = layer()
    path = loss_path(given_layer, refit)
    assert path.shape == (3, 6)
    assert torch.allclose(path[:, 5], torch.zeros(3).double(), atol=1e-8)
    expected = given_layer.refit.constant if refit else given_layer.energy
    assert torch.allclose(path[:, 0], expected)
    assert (path.diff(dim=1) <= 1e-9).all() or not refit


def test_refitted_path_lies_below_the_fixed_one():
    given_layer = layer(seed=2)
    fixed, refitted = loss_path(given_layer), loss_path(given_layer, refit=True)
    assert (refitted[:, 1:5].sum(0) < fixed[:, 1:5].sum(0)).all()


def test_loss_path_with_refit_needs_moments():
    bare = LayerProblem(torch.eye(3)[None], torch.ones(1, 3))
    with pytest.raises(SolverError, match="from_moments"):
        loss_path(bare, refit=True)
