import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from crosspruner.training.data.augment import (
    BatchRandomCrop,
    BatchRandomHorizontalFlip,
    batch_augmentation,
    large_augmentation,
    large_centre_crop,
    normalisation,
)
from crosspruner.training.data.randomness import Stream, keyed_rng


def test_crops_by_hand():
    images = torch.arange(1, 5, dtype=torch.uint8).view(1, 1, 2, 2).repeat(3, 1, 1, 1)
    offsets = {"top": torch.tensor([1, 0, 2]), "left": torch.tensor([1, 2, 0])}
    crops = BatchRandomCrop(1).transform(images, offsets)
    assert crops[:, 0].tolist() == [
        [[1, 2], [3, 4]],  # not shifted
        [[0, 0], [2, 0]],  # one row up, one column right: what was outside is zero
        [[0, 3], [0, 0]],
    ]


@given(
    batch=st.integers(1, 5), channels=st.integers(1, 4), height=st.integers(1, 7),
    width=st.integers(1, 7), padding=st.integers(0, 9), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_batched_crop_is_torchvisions_crop_of_each_image(
    batch, channels, height, width, padding, seed
):
    with keyed_rng(Stream.AUGMENTATION, seed):
        images = torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8)
        crop = BatchRandomCrop(padding)
        params = crop.make_params([images])
    crops = crop.transform(images, params)
    assert crops.dtype == torch.uint8
    for image, top, left, got in zip(images, params["top"], params["left"], crops, strict=True):
        padded = v2.functional.pad(image, [padding])
        assert torch.equal(got, v2.functional.crop(padded, int(top), int(left), height, width))


def test_crop_offsets_are_uniform_and_drawn_per_image():
    with keyed_rng(Stream.AUGMENTATION, 0):
        params = BatchRandomCrop(4).make_params([torch.empty(90_000, 1, 1, 1)])
    for offsets in params.values():
        counts = torch.bincount(offsets, minlength=9)
        assert counts.shape == (9,)
        assert (counts - 10_000).abs().max() < 500  # five standard deviations
    together = torch.corrcoef(torch.stack([params["top"], params["left"]]).float())
    assert together[0, 1].abs() < 0.02


def test_flips_by_hand_and_by_frequency():
    images = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).view(2, 1, 1, 3)
    flipped = BatchRandomHorizontalFlip().transform(images, {"flip": torch.tensor([False, True])})
    assert flipped.view(2, 3).tolist() == [[1, 2, 3], [6, 5, 4]]
    with keyed_rng(Stream.AUGMENTATION, 0):
        flips = BatchRandomHorizontalFlip(0.3).make_params([torch.empty(20_000, 1, 1, 1)])["flip"]
    assert flips.float().mean().item() == pytest.approx(0.3, abs=0.016)


@pytest.mark.parametrize(("p", "width"), [(0.0, 3), (1.0, 3), (1.0, 1)])
def test_flip_never_and_always(p, width):
    images = torch.rand(4, 2, 3, width)
    expected = images.flip(-1) if p else images
    assert torch.equal(BatchRandomHorizontalFlip(p)(images), expected)


def test_steps_that_are_switched_off_are_not_there():
    assert batch_augmentation(0, False) == []
    assert [type(step) for step in batch_augmentation(2, True)] == [
        BatchRandomCrop,
        BatchRandomHorizontalFlip,
    ]


def test_normalisation_by_hand():
    transform = v2.Compose(normalisation([0.0, 0.5, 1.0], [1.0, 0.5, 0.1]))
    images = torch.tensor([255, 0, 204], dtype=torch.uint8).view(1, 3, 1, 1)
    assert transform(images).flatten().tolist() == pytest.approx([1.0, -1.0, -2.0], abs=1e-5)
    assert transform(images).dtype == torch.float32


@pytest.mark.parametrize("size", [(224, 224), (70, 96)])
@pytest.mark.parametrize("source", [(300, 500), (50, 40)])
def test_large_images_come_out_at_the_size_asked_for(size, source):
    image = v2.functional.to_pil_image(torch.zeros(3, *source, dtype=torch.uint8))
    for steps in [large_augmentation(size, horizontal_flip=True), large_centre_crop(size)]:
        assert v2.Compose(steps)(image).shape == (3, *size)


def test_centre_crop_is_the_usual_one():
    resize, crop = large_centre_crop((224, 224))[1:]
    assert (resize.size, crop.size) == ([256], (224, 224))
