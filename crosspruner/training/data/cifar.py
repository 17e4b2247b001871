"""CIFAR-10 and CIFAR-100, downloaded by torchvision on first use."""

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from crosspruner.errors import DataError
from crosspruner.training.data.base import ImageData, Splits
from crosspruner.training.data.images import CachedImages

DATASETS = {10: datasets.CIFAR10, 100: datasets.CIFAR100}


class CifarData(ImageData):
    """50,000 training and 10,000 test images of 32x32 pixels; `val_fraction` of train validates.

    Args:
        dir: where the files are, or where they are put on first use (170 MB).
        classes: 10 or 100.
        **settings: those of ImageData.

    Raises:
        DataError: classes is neither; on setup: the files are not there and cannot be downloaded.
    """

    def __init__(self, dir: str | Path, classes: int = 10, **settings: Any) -> None:
        super().__init__(**settings)
        if classes not in DATASETS:
            raise DataError(f"data.classes={classes} given: CIFAR has 10 or 100.")
        self.dir = Path(dir).expanduser()
        self.classes = classes

    def prepare_data(self) -> None:
        """Download what is missing (Lightning calls this on one process)."""
        self._open(train=True)

    def load(self) -> Splits:
        train, test = self._open(train=True), self._open(train=False)
        stay, val = self.hold_out(_as_images(train), self.val_fraction, "validation")
        return Splits(stay, val, _as_images(test), tuple(train.classes), (32, 32))

    def _open(self, train: bool) -> datasets.CIFAR10:
        try:
            return DATASETS[self.classes](str(self.dir), train=train, download=True)
        except (OSError, RuntimeError) as error:
            cifar = DATASETS[self.classes]
            raise DataError(
                f"CIFAR-{self.classes} is not in {self.dir} and cannot be downloaded ({error}). "
                f"Connect once, or put the unpacked folder {cifar.base_folder} of {cifar.url} "
                "there, or use an image-folder tree: data=folder data.dir=DIR, or data=digits, "
                "which needs no download."
            ) from error


def _as_images(dataset: datasets.CIFAR10) -> CachedImages:
    pixels = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return CachedImages(pixels, torch.tensor(dataset.targets))
