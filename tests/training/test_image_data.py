"""What every datamodule shares: loaders, normalisation, calibration, ranges."""

import pytest
import torch

from crosspruner.errors import DataError
from crosspruner.training.data import SyntheticData
from crosspruner.training.data.base import channel_mean_std


def small(**settings) -> SyntheticData:
    return SyntheticData(**{"num_images": 100, "num_classes": 4, "image_size": 8, **settings})


def batches(loader, epoch=None):
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(first, second) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_batches_are_normalised_floats_with_labels():
    data = small(batch_size=16, augment=False)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((16, 3, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((16,), torch.int64)
    everything = torch.cat([x for x, _ in data.calibration_batches(1000)])
    assert everything.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (everything.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_training_drops_an_incomplete_batch_and_evaluation_does_not():
    data = small(batch_size=32)  # 72 for training, 8 for validation, 20 for test
    assert [len(x) for x, _ in data.train_dataloader()] == [32, 32]
    assert [len(x) for x, _ in data.test_dataloader()] == [20]
    assert sum(len(x) for x, _ in small(batch_size=3).val_dataloader()) == 8


def test_fewer_images_than_a_batch_make_one_batch():
    assert [len(x) for x, _ in small(batch_size=100).train_dataloader()] == [72]


def test_an_epoch_repeats_exactly_in_a_new_process():
    first, again = (batches(small(seed=3).train_dataloader(), epoch=5) for _ in "ab")
    assert equal(first, again)


@pytest.mark.parametrize("other", [{"seed": 4}, {"epoch": 6}])
def test_another_seed_or_epoch_gives_other_batches(other):
    first = batches(small(seed=3).train_dataloader(), epoch=5)
    second = batches(small(seed=other.get("seed", 3)).train_dataloader(), other.get("epoch", 5))
    assert not equal(first, second)


def test_loaders_leave_the_global_generator_alone():
    data = small()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.calibration_batches(9)):
        list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_changes_training_images_only():
    levels = {"mean": [0] * 3, "std": [1] * 3}
    plain, varied = small(augment=False, **levels), small(**levels)
    assert not equal(batches(plain.train_dataloader(), 0), batches(varied.train_dataloader(), 0))
    assert equal(batches(plain.val_dataloader()), batches(varied.val_dataloader()))
    assert equal(batches(plain.test_dataloader()), batches(varied.test_dataloader()))


def test_calibration_images_are_plain_training_images_and_repeat():
    data = small(batch_size=8, mean=[0] * 3, std=[1] * 3)
    loader = data.calibration_batches(20)
    first = batches(loader)
    assert [len(x) for x, _ in first] == [8, 8, 4]
    assert equal(first, batches(loader))
    assert equal(first, batches(small(batch_size=8, seed=9, mean=[0] * 3, std=[1] * 3)
                                .calibration_batches(20)))  # fmt: skip
    training = {tuple(image.flatten().tolist()) for image in data.splits.train.images}
    drawn = (torch.cat([x for x, _ in first]) * 255).round().to(torch.uint8)
    assert all(tuple(image.flatten().tolist()) in training for image in drawn)


def test_other_calibration_images_leave_what_is_held_out_alone():
    one, other = small(batch_size=8), small(batch_size=8, calibration_seed=1)
    assert not equal(batches(one.calibration_batches(20)), batches(other.calibration_batches(20)))
    assert equal(batches(one.val_dataloader()), batches(other.val_dataloader()))
    assert equal(batches(one.test_dataloader()), batches(other.test_dataloader()))
    moved = small(batch_size=8, split_seed=1).calibration_batches(20)
    typed = small(batch_size=8, split_seed=1, calibration_seed=1).calibration_batches(20)
    assert equal(batches(moved), batches(typed))  # not given, it goes with the split
    with pytest.raises(DataError, match="calibration_seed"):
        small(calibration_seed=-1)


def test_augmented_calibration_varies_the_same_images_and_repeats():
    data = small(batch_size=8)
    plain, varied = (
        batches(data.calibration_batches(20)),
        batches(data.calibration_batches(20, augmented=True)),
    )
    assert equal(varied, batches(small(batch_size=8, seed=9).calibration_batches(20, True)))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain, varied, strict=True))
    assert not equal(plain, varied)


def test_calibration_gives_at_most_all_training_images():
    assert sum(len(x) for x, _ in small().calibration_batches(10**6)) == 72
    with pytest.raises(DataError, match="0 calibration images asked for: at least 1"):
        small().calibration_batches(0)


def test_mean_and_deviation_by_hand():
    images = torch.tensor([[0, 255], [51, 51]], dtype=torch.uint8).view(2, 2, 1, 1)
    mean, std = channel_mean_std(images)
    assert mean == pytest.approx((0.1, 0.6))
    assert std == pytest.approx((0.1, 0.4))


def test_deviation_of_a_constant_channel_is_one_grey_level():
    _, std = channel_mean_std(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))
    assert std == pytest.approx((1 / 255,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0 given: it must be a whole number, 1 or more"),
        ({"batch_size": "abc"}, "data.batch_size=abc given: it must be a whole number"),
        ({"batch_size": 1.5}, "data.batch_size=1.5 given"),
        ({"val_fraction": 0.0}, "data.val_fraction=0.0 given: it must lie between 0 and 1"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0 given"),
        ({"num_workers": -1}, "data.num_workers=-1 given: it must be a whole number, 0 or more"),
        ({"val_fraction": "abc"}, "data.val_fraction=abc given"),
        ({"crop_padding": -1}, "data.crop_padding=-1 given"),
        ({"seed": -1}, "data.seed=-1 given"),
        ({"split_seed": -1}, "data.split_seed=-1 given"),
        ({"mean": [0.5] * 3}, "data.mean and data.std belong together"),
    ],
)
def test_out_of_range(settings, message):
    with pytest.raises(DataError, match=message):
        small(**settings)
