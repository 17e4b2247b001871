import re

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms import v2

from crosspruner.errors import DataError
from crosspruner.training.data.augment import BatchRandomCrop
from crosspruner.training.data.images import CachedImages, LazyImages, read_rgb


@pytest.fixture
def cached() -> CachedImages:
    pixels = torch.arange(6 * 3 * 4 * 4).view(6, 3, 4, 4).to(torch.uint8)
    return CachedImages(pixels, torch.arange(6))


@pytest.fixture
def lazy(tmp_path) -> LazyImages:
    for number in range(6):
        pixels = np.full((9, 7, 3), number, dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return LazyImages([tmp_path / f"{number}.png" for number in range(6)], torch.arange(6))


def test_a_batch_at_once(cached):
    images, labels = cached.__getitems__([4, 0, 4])
    assert labels.tolist() == [4, 0, 4]
    assert torch.equal(images, cached.images[[4, 0, 4]])


def test_one_image(cached):
    image, label = cached[2]
    assert torch.equal(image, cached.images[2])
    assert label == 2


def test_indices_are_taken_modulo_the_size(cached, lazy):
    assert cached.__getitems__([6 * 7 + 5])[1].tolist() == [5]
    assert lazy.transformed(v2.functional.pil_to_tensor)[6 * 7 + 5][1] == 5


def test_subset_keeps_order(cached, lazy):
    picked = torch.tensor([5, 1])
    assert cached.subset(picked).labels.tolist() == [5, 1]
    assert torch.equal(cached.subset(picked).images, cached.images[picked])
    assert [path.stem for path in lazy.subset(picked).paths] == ["5", "1"]


def test_transformed_shares_the_memory_and_leaves_the_original(cached):
    shifted = cached.transformed(lambda images: images + 1)
    assert shifted.images.data_ptr() == cached.images.data_ptr()
    assert torch.equal(shifted[0][0], cached.images[0] + 1)
    assert torch.equal(cached[0][0], cached.images[0])


def test_draws_depend_on_seed_and_index_only(cached):
    crop = BatchRandomCrop(3)
    one, two = cached.transformed(crop, seed=1), cached.transformed(crop, seed=2)
    keys = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    batches = [one.__getitems__(k)[0] for k in keys]
    torch.rand(5)  # what else draws from the global generator changes nothing
    again = [one.__getitems__(k)[0] for k in reversed(keys)]
    assert all(torch.equal(a, b) for a, b in zip(batches, reversed(again), strict=True))
    assert not torch.equal(batches[0], batches[2])  # the same images, an epoch later
    assert not torch.equal(batches[0], two.__getitems__(keys[0])[0])


def test_lazy_draws_depend_on_seed_and_index_only(lazy):
    steps = [v2.ToImage(), v2.RandomRotation(180)]
    images = lazy.transformed(v2.Compose([*steps, v2.Lambda(lambda x: x + torch.rand(1))]), seed=3)
    first, later = images[4][0], images[4 + 6][0]
    assert torch.equal(images[4][0], first)
    assert not torch.equal(first, later)


def test_without_seed_the_global_generator_is_drawn_from(cached):
    images = cached.transformed(lambda batch: batch + torch.rand(1))
    torch.manual_seed(3)
    first = images[0][0]
    torch.manual_seed(3)
    assert torch.equal(images[0][0], first)
    assert not torch.equal(images[0][0], first)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    PIL.Image.new(mode, (3, 2)).save(path)
    assert (read_rgb(path).mode, read_rgb(path).size) == ("RGB", (3, 2))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_keeps_its_range(tmp_path, suffix):
    levels = np.array([[0, 256, 257], [30000, 65534, 65535]], dtype=np.uint16)
    PIL.Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    read = np.asarray(read_rgb(tmp_path / f"a.{suffix}"))
    assert read[..., 0].tolist() == [[0, 0, 1], [116, 254, 255]]
    assert (read == read[..., :1]).all()


@pytest.mark.parametrize(("kind", "said"), [("int32", "32-bit int"), ("float32", "floating-p")])
def test_levels_without_a_known_range_are_refused(tmp_path, kind, said):
    PIL.Image.fromarray(np.full((2, 3), 300, dtype=kind)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif holds {said}.*: save it as 8-bit or 16-bit grey"):
        read_rgb(tmp_path / "a.tif")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n cut short"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))} cannot be read as an image"):
        LazyImages([path], torch.tensor([0]))[0]
