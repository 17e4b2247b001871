"""The datamodule that every data set shares: three splits, their loaders, calibration batches."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from crosspruner.errors import DataError
from crosspruner.training.data.augment import batch_augmentation, normalisation
from crosspruner.training.data.checks import check_count, check_fraction
from crosspruner.training.data.images import CachedImages, Images, Transform
from crosspruner.training.data.randomness import Stream, keyed_generator
from crosspruner.training.data.sampling import EpochSampler, ShareSampler
from crosspruner.training.data.splits import stratified_split


@dataclass(frozen=True)
class Splits:
    """What a data set gives: the images, without transforms, and what they show."""

    train: Images
    """Training images; the weights and the batch-norm statistics come from these."""
    val: Images
    """Held-out images: every decision (best epoch, budgets, thresholds) is taken on these."""
    test: Images
    """Read once, at the end."""
    class_names: tuple[str, ...]
    """Names of the labels 0, 1, ..."""
    image_size: tuple[int, int]
    """Height and width in pixels of what the network reads."""


class ImageData(pl.LightningDataModule, ABC):
    """Batches of (images float32 (B, 3, H, W), labels int64 (B,)) from a labelled image set.

    Batch order and augmentation depend on (seed, epoch) only, so a resumed run sees what the
    uninterrupted one would have seen.

    Args:
        batch_size: images per batch and process.
        val_fraction: share of the training images that is held out for validation, in (0, 1),
            stratified by class; not used where the data bring both validation and test images.
        num_workers: loader processes for images read from files; images in memory need none.
        augment: vary the training images. False trains on them as they are.
        crop_padding: pixels by which a crop may shift an image (augment only).
        horizontal_flip: mirror half of the images (augment only).
        seed: >= 0; of the batch order and the augmentation.
        split_seed: >= 0; of the held-out parts. Apart from `seed`, so that runs with other seeds
            that start from one checkpoint never validate on images it was trained on.
        calibration_seed: >= 0; of which training images calibrate; None = `split_seed`.
        mean, std: per channel on a scale of 0 to 1; None measures the training images.

    Raises:
        DataError: a number is out of range, or (on setup) the data are not as expected.
    """

    in_channels = 3

    def __init__(
        self,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        num_workers: int = 0,
        augment: bool = True,
        crop_padding: int = 4,
        horizontal_flip: bool = True,
        seed: int = 0,
        split_seed: int = 0,
        calibration_seed: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_count("batch_size", batch_size, least=1)
        check_fraction("val_fraction", val_fraction)
        check_count("num_workers", num_workers, least=0)
        check_count("crop_padding", crop_padding, least=0)
        check_count("seed", seed, least=0)
        check_count("split_seed", split_seed, least=0)
        if calibration_seed is None:
            calibration_seed = split_seed
        check_count("calibration_seed", calibration_seed, least=0)
        if (mean is None) != (std is None):
            raise DataError("data.mean and data.std belong together: give both, or neither.")
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.num_workers = num_workers
        self.augment = augment
        self.crop_padding = crop_padding
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        self.split_seed = split_seed
        self.calibration_seed = calibration_seed
        self._mean_std = None if mean is None or std is None else (tuple(mean), tuple(std))
        self._splits: Splits | None = None

    @abstractmethod
    def load(self) -> Splits:
        """Find and read the data. Called once; may not download."""

    def setup(self, stage: str | None = None) -> None:
        """Read the data, once, whatever the stage."""
        if self._splits is None:
            self._splits = self.load()

    @property
    def splits(self) -> Splits:
        """The images without transforms; read on first use."""
        self.setup()
        assert self._splits is not None
        return self._splits

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.splits.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.splits.image_size

    @property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel on a scale of 0 to 1, of the training images."""
        if self._mean_std is None:
            self._mean_std = self.measure_mean_std()
        return self._mean_std

    def measure_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        train = self.splits.train
        assert isinstance(train, CachedImages)
        return channel_mean_std(train.images)

    def train_steps(self) -> list[v2.Transform]:
        """What happens to training images before the normalisation."""
        return batch_augmentation(self.crop_padding, self.horizontal_flip) if self.augment else []

    def eval_steps(self) -> list[v2.Transform]:
        """What happens to validation, test and calibration images before the normalisation."""
        return []

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented; an incomplete last batch is left out (each epoch of others)."""
        images = self.splits.train.transformed(self.train_transform(), self.seed)
        sampler = EpochSampler(len(images), self.seed, *self._processes())
        return self._loader(images, sampler, drop_last=len(sampler) >= self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(self.splits.val)

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(self.splits.test)

    def calibration_batches(self, num_images: int, augmented: bool = False) -> DataLoader:
        """Training images as the network sees them at test time, for moments and batch-norm.

        Args:
            num_images: at least 1; more than there are gives all of them.
            augmented: as it sees them in training instead.

        Returns:
            An iterable of batches that can be iterated again and gives the same ones each time, on
            every process. The images are drawn at random from `calibration_seed`.
        """
        if num_images < 1:
            raise DataError(f"{num_images} calibration images asked for: at least 1 is needed.")
        train = self.splits.train
        generator = keyed_generator(Stream.CALIBRATION, self.calibration_seed)
        chosen = torch.randperm(len(train), generator=generator)[:num_images]
        images = train.subset(chosen).transformed(self.eval_transform())
        if augmented:
            images = images.transformed(self.train_transform(), self.calibration_seed)
        return self._loader(images, ShareSampler(len(images)))

    def test_batches(self, num_images: int | None = None) -> DataLoader:
        """Test images for measurements that cannot afford all of them.

        Args:
            num_images: at least 1, drawn at random from `split_seed` (folders come sorted by
                class); None, or more than there are, gives all of them.

        Returns:
            An iterable of batches that gives the same ones each time, on every process.
        """
        test = self.splits.test
        if num_images is not None:
            if num_images < 1:
                raise DataError(f"{num_images} test images asked for: at least 1 is needed.")
            generator = keyed_generator(Stream.CALIBRATION, self.split_seed)
            chosen = torch.randperm(len(test), generator=generator)[:num_images]
            test = test.subset(chosen)
        return self._loader(test.transformed(self.eval_transform()), ShareSampler(len(test)))

    def train_transform(self) -> Transform:
        """What turns training images into what the network reads."""
        return v2.Compose([*self.train_steps(), *normalisation(*self.mean_std)])

    def eval_transform(self) -> Transform:
        """What turns validation, test and calibration images into what the network reads."""
        return v2.Compose([*self.eval_steps(), *normalisation(*self.mean_std)])

    def _eval_loader(self, images: Images) -> DataLoader:
        images = images.transformed(self.eval_transform())
        return self._loader(images, ShareSampler(len(images), *self._processes()))

    def _processes(self) -> tuple[int, int]:
        """How many processes share the data, and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _loader(
        self, images: Images, sampler: EpochSampler | ShareSampler, drop_last: bool = False
    ) -> DataLoader:
        workers = 0 if isinstance(images, CachedImages) else self.num_workers
        return DataLoader(
            images,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=images.collate,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            # its own: a loader must not draw from the global generator
            generator=keyed_generator(Stream.LOADER, self.seed),
        )

    def hold_out(self, images: Images, fraction: float, part: str) -> tuple[Images, Images]:
        """(what stays, what is held out): stratified, seeded by `split_seed`."""
        stay, held_out = stratified_split(images.labels, fraction, self.split_seed, part)
        return images.subset(stay), images.subset(held_out)


def channel_mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, on a scale of 0 to 1, of (N, C, H, W) uint8 images.

    Exact, from the histogram of each channel. A constant channel gets one grey level as deviation.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    ).double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    mean = shares @ levels
    std = (shares @ levels.square() - mean.square()).clamp_min(1 / 255**2).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
