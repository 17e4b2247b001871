"""Image folders: one folder per split, one folder per class in it, any image format and size."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import is_image_file
from torchvision.transforms import v2

from crosspruner.errors import DataError
from crosspruner.training.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    large_augmentation,
    large_centre_crop,
)
from crosspruner.training.data.base import ImageData, Splits
from crosspruner.training.data.checks import height_and_width
from crosspruner.training.data.images import CachedImages, Images, LazyImages, read_rgb

log = logging.getLogger(__name__)

LARGEST_CACHED = 64
"""Images up to this side, in pixels, are held in memory."""

EXPECTED = "Expected DIR/train/CLASS/IMAGE with DIR/val or DIR/test (or both) beside train."


class FolderData(ImageData):
    """An image-folder tree: `dir`/train/CLASS/IMAGE, and val or test or both beside train.

    With train, val and test each is what its name says. With train and test, `val_fraction` of
    train is held out for validation. With train and val (as ImageNet comes), val is the test split,
    read once at the end, and `val_fraction` of train is held out for validation.

    Images up to 64 pixels are decoded once into memory; larger ones are read when asked for, with a
    random resized crop for training and the centre crop otherwise.

    Args:
        dir: the folder that holds train.
        image_size: height and width in pixels of what the network reads, or one number for both.
            None: that of the first training image where it is at most 64 pixels, else 224.
            Small images of another size are resized to it.
        **settings: those of ImageData.

    Raises:
        DataError: on setup, naming the folder and what is expected in it.
    """

    def __init__(
        self, dir: str | Path, image_size: int | tuple[int, int] | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.dir = Path(dir).expanduser()
        self._asked_size = None if image_size is None else height_and_width(image_size)

    def load(self) -> Splits:
        folders = find_splits(self.dir)
        listed = {split: self.list_split(folder) for split, folder in folders.items()}
        check_same_classes({folders[split]: found.classes for split, found in listed.items()})
        check_several_classes(listed["train"])

        size = self._asked_size or _native_size(listed["train"].samples[0][0])
        read = {split: self.read_split(found, size) for split, found in listed.items()}
        train, val, test = read["train"], read.get("val"), read.get("test")
        if test is None:
            val, test = None, val
        if val is None:
            train, val = self.hold_out(train, self.val_fraction, "validation")
        assert test is not None
        return Splits(train, val, test, tuple(listed["train"].classes), size)

    def list_split(self, folder: Path) -> ImageFolder:
        """The image files of one split, and their labels."""
        return list_images(folder)

    def read_split(self, listed: ImageFolder, size: tuple[int, int]) -> Images:
        """The images of one split: in memory, or to be read when asked for."""
        return _as_images(listed, size)

    @property
    def cached(self) -> bool:
        """Whether the images are held in memory."""
        return isinstance(self.splits.train, CachedImages)

    def measure_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return super().measure_mean_std() if self.cached else (IMAGENET_MEAN, IMAGENET_STD)

    def train_steps(self) -> list[v2.Transform]:
        if self.cached:
            return super().train_steps()
        if not self.augment:
            return self.eval_steps()
        return large_augmentation(self.image_size, self.horizontal_flip)

    def eval_steps(self) -> list[v2.Transform]:
        return super().eval_steps() if self.cached else large_centre_crop(self.image_size)


class ShownImages(ImageFolder):
    """An ImageFolder whose classes are the folders that are not hidden."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        folders = (entry for entry in Path(directory).iterdir() if entry.is_dir())
        names = sorted(entry.name for entry in folders if _is_shown(entry))
        return names, {name: label for label, name in enumerate(names)}


def find_splits(root: Path) -> dict[str, Path]:
    """The folders of the splits by name: train, and val or test or both."""
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"data.dir={root} {problem}. {EXPECTED}")
    found = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    missing = "train" if "train" not in found else "val or test" if len(found) == 1 else None
    if missing:
        holds = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise DataError(f"data.dir={root} has no folder {missing}; it holds: {holds}. {EXPECTED}")
    return found


def list_images(folder: Path) -> ImageFolder:
    """The image files of one split; hidden folders and files (".ipynb_checkpoints") are no part.

    Raises:
        DataError: there are no class folders, or one without images.
    """
    if not any(entry.is_dir() and _is_shown(entry) for entry in folder.iterdir()):
        raise DataError(f"{folder} holds no class folders. Expected {folder}/CLASS/IMAGE.")
    root, hidden = str(folder), f"{os.sep}."

    def is_shown_image(path: str) -> bool:
        return is_image_file(path) and hidden not in path[len(root) :]

    listed = ShownImages(root, is_valid_file=is_shown_image, allow_empty=True)
    counts: Counter[int] = Counter(listed.targets)
    empty = [name for name, label in listed.class_to_idx.items() if not counts[label]]
    if empty:
        others = f" (one of {len(empty)} such folders)" if len(empty) > 1 else ""
        raise DataError(
            f"{folder / empty[0]} holds no images{others}; it holds: "
            f"{_types_in(folder / empty[0])}. Put images there (jpg, png, bmp, webp, tif, ppm), or "
            "remove the folder."
        )
    return listed


def check_same_classes(classes: dict[Path, list[str]]) -> None:
    """Every split must show the classes of the first one, else labels would not agree."""
    (first, expected), *others = classes.items()
    for folder, found in others:
        if found != expected:
            missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
            raise DataError(
                f"{folder} and {first} must hold the same classes. "
                f"Missing from {folder}: {', '.join(missing[:8]) or 'none'}. "
                f"Only in {folder}: {', '.join(extra[:8]) or 'none'}."
            )


def check_several_classes(listed: ImageFolder) -> None:
    """One class is a folder too many or too few in the path, and 100 % accuracy without a cause."""
    if len(listed.classes) < 2:
        raise DataError(
            f"{listed.root} holds one class, {listed.classes[0]}, of {len(listed)} image(s): at "
            f"least two are needed. {EXPECTED}"
        )


def _types_in(folder: Path) -> str:
    """How many files of which type there are, hidden ones aside, for messages."""
    files = [entry for entry in folder.rglob("*") if entry.is_file() and _is_shown(entry)]
    types = Counter(entry.suffix.lower() or "no suffix" for entry in files).most_common(4)
    return ", ".join(f"{count} of type {suffix}" for suffix, count in types) or "nothing"


def _is_shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _as_images(listed: ImageFolder, size: tuple[int, int]) -> Images:
    labels = torch.tensor(listed.targets)
    if max(size) > LARGEST_CACHED:
        return LazyImages([Path(path) for path, _ in listed.samples], labels)
    pixels = np.empty((len(labels), 3, *size), dtype=np.uint8)
    resized = 0
    # One after the other: on images this small, threads spend more on the interpreter lock
    # than decoding takes (0.1 ms an image).
    for row, (path, _) in enumerate(listed.samples):
        image = read_rgb(path)
        if image.size != size[::-1]:
            image = image.resize(size[::-1], PIL.Image.Resampling.BILINEAR)
            resized += 1
        pixels[row] = np.asarray(image).transpose(2, 0, 1)
    log.info("Read %d images of %s into memory", len(labels), listed.root)
    if resized:
        log.warning(
            "%d of %d images of %s were resized to %dx%d pixels; data.image_size sets another size",
            *(resized, len(labels), listed.root, *size),
        )
    return CachedImages(torch.from_numpy(pixels), labels)


def _native_size(path: str) -> tuple[int, int]:
    width, height = read_rgb(path).size
    return (height, width) if max(height, width) <= LARGEST_CACHED else (224, 224)
