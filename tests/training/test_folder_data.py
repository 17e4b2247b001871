import re
import shutil

import PIL.Image
import pytest
import torch

from crosspruner.errors import DataError
from crosspruner.training.data import FolderData
from crosspruner.training.data.augment import IMAGENET_MEAN, IMAGENET_STD
from crosspruner.training.data.images import CachedImages, LazyImages


def test_train_and_test_hold_out_validation_from_train(image_tree):
    root = image_tree({"train": {"cat": 10, "dog": 10}, "test": {"cat": 3, "dog": 4}})
    data = FolderData(root, val_fraction=0.2)
    assert (data.num_classes, data.class_names) == (2, ("cat", "dog"))
    assert (data.image_size, data.in_channels) == ((8, 8), 3)
    assert [len(split) for split in (data.splits.train, data.splits.val, data.splits.test)] == [
        16, 4, 7
    ]  # fmt: skip
    assert torch.bincount(data.splits.val.labels).tolist() == [2, 2]
    assert data.splits.test.labels.tolist() == [0] * 3 + [1] * 4
    assert torch.equal(data.splits.test.images[:, 0, 0, 0], torch.tensor([0, 1, 2, 40, 41, 42, 43]))


def test_train_and_val_make_val_the_test_split(image_tree):
    root = image_tree({"train": {"cat": 10, "dog": 10}, "val": {"cat": 3, "dog": 3}})
    splits = FolderData(root, val_fraction=0.1).splits
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [18, 2, 6]
    assert torch.equal(splits.test.images[:, 0, 0, 0], torch.tensor([0, 1, 2, 40, 41, 42]))


def test_three_splits_are_taken_as_they_are(image_tree):
    root = image_tree({s: {"cat": n, "dog": 1} for s, n in (("train", 3), ("val", 2), ("test", 1))})
    splits = FolderData(root).splits
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [4, 3, 2]


def test_held_out_images_depend_on_split_seed_alone(image_tree):
    root = image_tree({"train": {"cat": 40, "dog": 40}, "test": {"cat": 1, "dog": 1}})

    def held_out(**seeds):
        return FolderData(root, **seeds).splits.val.images[:, 0, 0, 0].tolist()

    assert held_out(seed=0) == held_out(seed=1) != held_out(split_seed=1)


def test_small_images_are_cached_and_large_ones_read_when_asked_for(image_tree):
    root = image_tree({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}, size=(65, 30))
    data = FolderData(root, val_fraction=0.3, batch_size=2)
    assert isinstance(data.splits.train, LazyImages)
    assert data.image_size == (224, 224)
    assert data.mean_std == (IMAGENET_MEAN, IMAGENET_STD)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        images, labels = next(iter(loader))
        assert images.shape[1:] == (3, 224, 224)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_large_images_without_augmentation_are_the_same_every_epoch(image_tree):
    root = image_tree({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}, size=(70, 90))
    data = FolderData(root, val_fraction=0.3, augment=False, image_size=(66, 70))
    images = data.train_dataloader().dataset
    assert images[1][0].shape == (3, 66, 70)
    assert torch.equal(images[1][0], images[1 + len(images)][0])


@pytest.mark.parametrize(("asked", "size"), [(16, (16, 16)), ((12, 20), (12, 20))])
def test_image_size_resizes_small_images_and_says_so(image_tree, caplog, asked, size):
    root = image_tree({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}, size=(8, 10))
    data = FolderData(root, image_size=asked, val_fraction=0.5)
    assert data.splits.train.images.shape[1:] == (3, *size)
    assert isinstance(data.splits.train, CachedImages)
    assert f"4 of 4 images of {root / 'train'} were resized to {size[0]}x{size[1]}" in caplog.text


def test_mixed_sizes_take_that_of_the_first_image(image_tree, caplog):
    root = image_tree({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}, size=(8, 10))
    PIL.Image.new("RGB", (90, 50)).save(root / "train/cat/zzz.png")
    assert FolderData(root, val_fraction=0.5).splits.train.images.shape[1:] == (3, 8, 10)
    assert "1 of 5 images" in caplog.text
    assert "test were resized" not in caplog.text


def test_hidden_folders_and_files_are_no_part_of_the_data(image_tree):
    """As Jupyter (folders) and macOS (files that are no images) leave them behind."""
    root = image_tree({"train": {"cat": 4, "dog": 4, ".ipynb_checkpoints": 1, ".new": 0},
                       "test": {"cat": 2, "dog": 2}})  # fmt: skip
    (root / "train/cat/._000.png").write_bytes(b"no image")
    (root / "train/cat/.ipynb_checkpoints").mkdir()
    shutil.copy(root / "train/cat/000.png", root / "train/cat/.ipynb_checkpoints/000.png")
    data = FolderData(root, val_fraction=0.25)
    assert data.class_names == ("cat", "dog")
    assert [len(split) for split in (data.splits.train, data.splits.val)] == [6, 2]


def test_mean_and_deviation_may_be_given(image_tree):
    root = image_tree({"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}})
    data = FolderData(root, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], val_fraction=0.5)
    images, _ = next(iter(data.test_dataloader()))
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0.0, 40 / 255])


def check(root, message, **settings):
    with pytest.raises(DataError, match=message):
        FolderData(root, **settings).setup()


def test_no_such_folder(tmp_path):
    check(tmp_path / "nope", r"data.dir=\S+nope does not exist. Expected DIR/train/CLASS/IM")


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    check(tmp_path / "file", "is a file, not a folder")


def test_an_empty_folder(tmp_path):
    check(tmp_path, "has no folder train; it holds: nothing. Expected")


def test_a_folder_of_classes_without_splits(image_tree):
    root = image_tree({"cat": {"a": 1}, "dog": {"a": 1}})
    check(root, "has no folder train; it holds: cat, dog. Expected")


def test_train_alone(image_tree):
    check(image_tree({"train": {"cat": 3}}), "has no folder val or test; it holds: train")


def test_a_split_without_classes(image_tree):
    root = image_tree({"train": {"cat": 3}, "test": {"cat": 1}})
    (root / "test/cat/000.png").unlink()
    (root / "test/cat").rmdir()
    check(root, rf"{re.escape(str(root))}/test holds no class folders. Expected \S+/test/CLASS/IM")


def test_a_class_without_images(image_tree):
    root = image_tree({"train": {"cat": 3, "dog": 0, "elk": 0}, "test": {"cat": 1}})
    check(root, rf"{re.escape(str(root))}/train/dog holds no images \(one of 2 such folders\); it "
                "holds: nothing")  # fmt: skip


def test_a_class_of_files_of_other_types(image_tree):
    root = image_tree({"train": {"cat": 3, "dog": 0}, "test": {"cat": 1, "dog": 1}})
    for name in ("a.gif", "b.GIF", "notes.txt", ".DS_Store"):
        (root / "train/dog" / name).touch()
    check(
        root, r"dog holds no images; it holds: 2 of type \.gif, 1 of type \.txt. Put images there"
    )


def test_one_class(image_tree):
    """As of DIR/train/IMAGES/CLASS, one folder too many."""
    root = image_tree({"train": {"cat": 3}, "test": {"cat": 1}})
    check(root, r"/train holds one class, cat, of 3 image\(s\): at least two are needed. Expected "
                "DIR/train/CLASS/IMAGE")  # fmt: skip


def test_splits_of_different_classes(image_tree):
    root = image_tree({"train": {"cat": 3, "dog": 3}, "test": {"cat": 1, "elk": 1}})
    check(root, r"test and \S+train must hold the same classes. Missing from \S+: dog. Only in "
                r"\S+: elk")  # fmt: skip


def test_a_damaged_image(image_tree):
    root = image_tree({"train": {"cat": 3, "dog": 3}, "test": {"cat": 1, "dog": 1}})
    (root / "train/cat/001.png").write_bytes(b"no image")
    check(root, r"train/cat/001.png cannot be read as an image")


@pytest.mark.parametrize("size", [0, -1, (32, 0), (1, 2, 3), "ab", 1.5])
def test_image_size_of_no_use(tmp_path, size):
    with pytest.raises(DataError, match=r"data.image_size=.* given: it must be a number of pix"):
        FolderData(tmp_path, image_size=size)
