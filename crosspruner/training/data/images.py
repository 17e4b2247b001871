"""The two kinds of image data set: a uint8 tensor in memory, and files read when asked for."""

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

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
        paths: N files; any mode that PIL reads, taken as RGB.
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
    """Read one image file of any mode as RGB.

    Raises:
        DataError: it is damaged, or no image.
    """
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}). Remove it, or replace it."
        ) from error
