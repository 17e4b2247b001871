"""digits, synthetic and CIFAR: what they hold."""

from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from crosspruner.errors import DataError
from crosspruner.training.data import CifarData, DigitsData, SyntheticData, cifar
from crosspruner.training.data.base import ImageData


def sizes(data: ImageData) -> list[int]:
    return [len(split) for split in (data.splits.train, data.splits.val, data.splits.test)]


def test_digits():
    data = DigitsData()
    assert sizes(data) == [1293, 144, 360]
    assert (data.num_classes, data.image_size, data.in_channels) == (10, (32, 32), 3)
    assert torch.bincount(data.splits.test.labels).min() >= 34
    images = torch.cat([s.images for s in (data.splits.train, data.splits.val, data.splits.test)])
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert (images.min(), images.max()) == (0, 255)
    # corners of a bilinear enlargement are the corners of the original: 0..16 becomes 0..255
    corners = sorted((load_digits().images[:, 0, 7] * 255 / 16).round().tolist())
    assert sorted(images[:, 0, 0, 31].tolist()) == corners


def test_digits_are_not_mirrored_unless_asked():
    assert not DigitsData().horizontal_flip
    assert DigitsData(horizontal_flip=True).horizontal_flip


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_digits_test_fraction(fraction):
    with pytest.raises(DataError, match=f"data.test_fraction={fraction} given"):
        DigitsData(test_fraction=fraction)


def test_synthetic_is_deterministic_and_even():
    first, again = (SyntheticData(num_images=200, num_classes=4, image_size=(9, 16)) for _ in "ab")
    assert sizes(first) == [144, 16, 40]
    assert torch.equal(first.splits.train.images, again.splits.train.images)
    assert torch.bincount(first.splits.test.labels).tolist() == [10, 10, 10, 10]
    assert (first.num_classes, first.image_size) == (4, (9, 16))
    other = SyntheticData(num_images=200, num_classes=4, image_size=(9, 16), split_seed=1)
    assert not torch.equal(first.splits.train.images, other.splits.train.images)


def test_synthetic_is_learnable_but_not_trivial():
    data = SyntheticData(num_images=1000, num_classes=5, image_size=16, noise=3.0)
    train, test = data.splits.train, data.splits.test
    means = torch.stack([train.images[train.labels == c].float().mean(0) for c in range(5)])
    nearest = torch.cdist(test.images.flatten(1).float(), means.flatten(1)).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.9  # by nearest class mean
    pixel = train.images[:, 0, 8, 8].float()
    assert pixel.std() > 60


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_images", 0),
        ("num_classes", 0),
        ("image_size", 0),
        ("noise", -1.0),
        ("noise", float("nan")),
    ],
)
def test_synthetic_out_of_range(name, value):
    with pytest.raises(DataError, match=f"data.{name}={value} given: it must be"):
        SyntheticData(**{name: value})


def test_synthetic_with_too_few_images_for_three_splits():
    with pytest.raises(DataError, match="Cannot hold out"):
        SyntheticData(num_images=10, num_classes=10).setup()


class TinyCifar(datasets.CIFAR10):
    """Stands for torchvision's CIFAR-10: as many images as asked for, no files."""

    def __init__(self, root, train, download):
        assert download
        count = 100 if train else 20
        self.data = np.full((count, 32, 32, 3), [10, 20, 30], dtype=np.uint8)
        self.targets = [number % 10 for number in range(count)]
        self.classes = [f"class {number}" for number in range(10)]


def test_cifar_splits(monkeypatch, tmp_path):
    monkeypatch.setitem(cifar.DATASETS, 10, TinyCifar)
    data = CifarData(tmp_path)
    data.prepare_data()
    assert sizes(data) == [90, 10, 20]
    assert (data.num_classes, data.image_size) == (10, (32, 32))
    assert data.splits.train.images[0, :, 5, 5].tolist() == [10, 20, 30]
    assert torch.bincount(data.splits.val.labels).tolist() == [1] * 10


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_without_internet(monkeypatch, tmp_path, classes):
    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(DataError) as error:
        CifarData(tmp_path, classes).setup()
    message = str(error.value)
    assert message.startswith(f"CIFAR-{classes} is not in {tmp_path} and cannot be downloaded (")
    assert "no route to host" in message
    assert "data=folder data.dir=DIR, or data=digits" in message


def test_cifar_of_other_classes(tmp_path):
    with pytest.raises(DataError, match=r"data.classes=20 given: CIFAR has 10 or 100"):
        CifarData(tmp_path, classes=20)
