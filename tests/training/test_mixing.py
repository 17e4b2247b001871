"""Mixup and cutmix: shares of labels are shares of pixels, and draws depend on their key alone."""

import pytest
import torch

from crosspruner.training.data.mixing import Mixing

KEY = (0, 3, 5, 0)


def batch(size=6, side=8):
    """Image n is n everywhere, and shows class n."""
    labels = torch.arange(size)
    return labels.float().view(-1, 1, 1, 1).expand(size, 3, side, side).clone(), labels


def test_off_leaves_the_batch_alone():
    images, labels = batch()
    mixed, targets = Mixing(6)(images, labels, KEY)
    assert mixed is images
    assert targets is labels


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_labels_have_the_shares_of_the_pixels(way):
    images, labels = batch()
    mixed, targets = Mixing(6, **{way: 1.0})(images, labels, KEY)
    assert targets.shape == (6, 6)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    # An image that is a constant c has the mean sum_k share_k * k.
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets @ labels.float(), atol=1e-5)
    assert not torch.equal(mixed, images)
    values = mixed[1].unique()
    assert len(values) == 1 if way == "mixup" else len(values) <= 2


def test_draws_depend_on_the_key_alone():
    images, labels = batch()
    mixing = Mixing(6, mixup=1.0, cutmix=1.0)
    torch.manual_seed(1)
    first, _ = mixing(images, labels, KEY)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again, _ = mixing(images, labels, KEY)
    other, _ = mixing(images, labels, (0, 3, 6, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # and leave the global generator alone


def test_both_ways_and_the_share_of_batches_are_drawn():
    images, labels = batch()
    mixing = Mixing(6, mixup=1.0, cutmix=1.0, share=0.5)
    constant = cut = plain = 0
    for number in range(200):
        mixed, targets = mixing(images, labels, (0, 0, number, 0))
        if targets.dim() == 1:
            plain += 1
            assert torch.equal(mixed, images)
        elif len(mixed[1].unique()) == 1 and mixed[1, 0, 0, 0] not in labels:
            constant += 1
        else:
            cut += 1
    assert 70 < plain < 130
    assert min(constant, cut) > 20
