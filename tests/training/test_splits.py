import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosspruner.errors import DataError
from crosspruner.training.data.splits import stratified_split


@given(
    counts=st.lists(st.integers(5, 30), min_size=1, max_size=6),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**31),
)
def test_disjoint_complete_and_stratified(counts, fraction, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    stay, held_out = stratified_split(labels, fraction, seed, "validation")
    together = torch.cat([stay, held_out])
    assert torch.equal(together.sort().values, torch.arange(len(labels)))
    assert torch.equal(stay, stay.sort().values)
    share = torch.bincount(labels[held_out], minlength=len(counts))
    assert ((share - fraction * torch.tensor(counts)).abs() <= 1.5).all()
    assert (share > 0).all()


def test_same_seed_same_split():
    labels = torch.arange(100) % 4
    first, again, other = (stratified_split(labels, 0.2, seed, "test")[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.bincount(labels[first]).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0])
def test_fraction_out_of_range(fraction):
    with pytest.raises(DataError, match=f"test fraction {fraction} given: it must lie between 0"):
        stratified_split(torch.arange(10) % 2, fraction, 0, "test")


@pytest.mark.parametrize(
    ("labels", "fraction", "reason"),
    [
        ([0, 0, 0, 1], 0.5, "4 images in 2 classes for validation: the smallest class has 1 image"),
        ([0, 0, 1, 1, 2, 2], 0.2, "that leaves 4 and 2 images"),
        ([0], 0.5, "the smallest class has 1 image"),
    ],
)
def test_classes_too_small_to_share(labels, fraction, reason):
    with pytest.raises(DataError, match=f"{reason}. Every class needs an image on both sides"):
        stratified_split(torch.tensor(labels), fraction, 0, "validation")
