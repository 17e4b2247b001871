"""The two kinds of image data set: a uint8 tensor in memory, and files read when asked for."""

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from crosspruner.errors import DataError
from crosspruner.training.data.randomness import Stream, keyed_rng

Transform = Callable[[Any], Tensor]


class Images(Dataset):
    """Images with labels, and the transform that turns them into what the network reads.

    Indices are taken modulo the size: `epoch * size + index` is that epoch's augmentation of the
    image (see EpochSampler). With a seed, what the transform draws depends on (seed, index) only.
    """

    labels: Tensor  # (N,) int64
    transform: Transform
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Images":
        """The images `indices` (K,) int64, in that order."""
        raise NotImplementedError

    def collate(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What a DataLoader does with what this data set gives for a list of indices."""
        raise NotImplementedError

    def transformed(self, transform: Transform, seed: int | None = None) -> "Images":
        """The same images (shared memory) through `transform`, drawn from `seed` where given."""
        other = copy(self)
        other.transform, other.seed = transform, seed
        return other

    def _apply(self, images: Any, key: int) -> Tensor:
        if self.seed is None:
            return self.transform(images)
        with keyed_rng(Stream.AUGMENTATION, self.seed, key):
            return self.transform(images)


class CachedImages(Images):
    """Images held in memory as one tensor; a batch is indexed and transformed as a whole.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        transform: maps a batch (B, C, H, W) uint8 to what the network reads.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Transform = torch.clone) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def subset(self, indices: Tensor) -> "CachedImages":
        return CachedImages(self.images[indices], self.labels[indices], self.transform)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch at once. What it draws depends on (seed, first index): batches stay whole."""
        rows = torch.tensor(indices) % len(self)
        return self._apply(self.images[rows], indices[0]), self.labels[rows]

    def collate(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch


class LazyImages(Images):
    """Image files, read and transformed one by one when asked for.

    Args:
        paths: N files, taken as RGB (see read_rgb).
        labels: (N,) int64.
        transform: maps one PIL image to what the network reads, the same shape for every image.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, transform: Transform | None = None
    ) -> None:
        self.paths, self.labels = list(paths), labels
        if transform is not None:
            self.transform = transform

    def subset(self, indices: Tensor) -> "LazyImages":
        return LazyImages([self.paths[i] for i in indices.tolist()], self.labels[indices])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = index % len(self)
        return self._apply(read_rgb(self.paths[row]), index), self.labels[row]

    def collate(self, batch: Any) -> tuple[Tensor, Tensor]:
        return default_collate(batch)


def read_rgb(path: str | Path) -> PIL.Image.Image:
    """Read one image file as RGB; 16-bit grey keeps its range, 65535 becomes 255.

    Raises:
        DataError: it is damaged, no image, or its levels have no known range (32 bits, floats).
    """
    try:
        with PIL.Image.open(path) as image:
            image.load()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}). Remove it, or replace it."
        ) from error
    return _eight_bits(image, path).convert("RGB")


def _eight_bits(image: PIL.Image.Image, path: str | Path) -> PIL.Image.Image:
    """The image with levels 0 to 255: `convert` would cut deeper grey off there."""
    # What PIL makes of a 16-bit PGM is I as well, stretched to 65535.
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        return PIL.Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        levels = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DataError(
            f"{path} holds {levels}, whose black and white are not known: save it as 8-bit or "
            "16-bit grey, or as RGB."
        )
    return image
