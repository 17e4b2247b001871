"""ImageNet, and any folder of large images, read as the network's published weights expect."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from timm.utils.misc import natural_key
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose

from crosspruner.errors import DataError
from crosspruner.training.data.checks import check_choice, height_and_width
from crosspruner.training.data.folder import FolderData
from crosspruner.training.data.images import Images, LazyImages
from crosspruner.training.models.preprocessing import preprocessing_of

log = logging.getLogger(__name__)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")


class Standardise:
    """uint8 pixels -> float32 with the given mean and deviation, by timm's very arithmetic.

    timm subtracts 255 mean and divides by 255 std; scaling to 0..1 first rounds differently.

    Args:
        mean, std: per channel, on a scale of 0 to 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor([255 * value for value in mean]).view(-1, 1, 1)
        self.std = torch.tensor([255 * value for value in std]).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """image (C, H, W) uint8 -> the same shape, float32."""
        return image.float().sub_(self.mean).div_(self.std)


class ImageNetData(FolderData):
    """`dir`/train/CLASS/IMAGE and `dir`/val/CLASS/IMAGE with timm's transforms.

    Test accuracy equals that of timm's validate.py on the same weights and images, to the last
    image: size, interpolation, crop, mean and deviation come from the network's own data
    configuration, the size from its size at test time. Classes are counted in timm's order (class_2
    before class_10), which for ImageNet's names is the usual one. Images are read from their files
    when asked for.

    Args:
        dir: the folder that holds train, and val or test.
        model_family, model_name: whose data configuration is used.
        image_size: height and width in pixels, or one number, for training and test alike; None =
            the network's own, which may be smaller for training than for test.
        interpolation: bicubic, bilinear, ...; None = the network's own.
        crop_pct: side of the centre crop over that of the resized image, in (0, 1]; None = the
            network's own.
        crop_mode: center, squash or border; None = the network's own.
        auto_augment: timm's policy for training images, "rand-m9-mstd0.5-inc1"; None = none.
        color_jitter: strength of the changes of brightness, contrast and saturation, >= 0; not with
            a policy.
        random_erasing: probability that a box of a training image is erased, in [0, 1].
        **settings: those of ImageData; mean and std are the network's own unless given.

    Raises:
        DataError: a value is out of range or unknown to timm; on setup, naming the folder and what
            is expected in it.
    """

    def __init__(
        self,
        dir: str | Path,
        model_family: str = "timm",
        model_name: str = "",
        image_size: int | tuple[int, int] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        auto_augment: str | None = None,
        color_jitter: float = 0.4,
        random_erasing: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **settings: Any,
    ) -> None:
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        check_choice("crop_mode", crop_mode, CROP_MODES)
        for key, value, fits, allowed in (
            ("crop_pct", crop_pct, crop_pct is None or 0 < crop_pct <= 1, "above 0 to 1"),
            ("color_jitter", color_jitter, color_jitter >= 0, "0 or more"),
            ("random_erasing", random_erasing, 0 <= random_erasing <= 1, "from 0 to 1"),
        ):
            if not fits:
                raise DataError(f"data.{key}={value} given: it must lie {allowed}.")
        changes: dict[str, Any] = {"interpolation": interpolation, "crop_mode": crop_mode}
        changes |= {"crop_pct": crop_pct, "mean": mean, "std": std}
        if image_size is not None:
            changes["input_size"] = (3, *height_and_width(image_size))
        self.preprocessing = preprocessing_of(model_family, model_name, changes)
        how = self.preprocessing
        super().__init__(dir, how.image_size, mean=how.mean, std=how.std, **settings)
        self.auto_augment = auto_augment
        self.color_jitter = color_jitter
        self.random_erasing = random_erasing
        try:
            self.train_transform()
        except (AssertionError, ValueError, KeyError) as error:
            raise DataError(
                f"data.auto_augment={auto_augment} given: timm cannot read it ({error}). Give a "
                "policy such as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or original-mstd0.5, or null."
            ) from error

    def list_split(self, folder: Path) -> ImageFolder:
        listed = super().list_split(folder)
        listed.classes.sort(key=natural_key)
        names = dict(enumerate(sorted(listed.classes)))
        listed.class_to_idx = {name: label for label, name in enumerate(listed.classes)}
        listed.samples = [(path, listed.class_to_idx[names[old]]) for path, old in listed.samples]
        listed.samples.sort(key=lambda sample: natural_key(sample[0]))
        listed.targets = [label for _, label in listed.samples]
        return listed

    def read_split(self, listed: ImageFolder, size: tuple[int, int]) -> Images:
        return LazyImages([Path(path) for path, _ in listed.samples], torch.tensor(listed.targets))

    def setup(self, stage: str | None = None) -> None:
        first = self._splits is None
        super().setup(stage)
        if first:
            log.info("images as the network's weights expect them: %s", self.preprocessing)

    def train_transform(self) -> Any:
        if not self.augment:
            return self.eval_transform()
        how = self.preprocessing
        return create_transform(
            how.train_size,
            is_training=True,
            hflip=0.5 if self.horizontal_flip else 0.0,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment,
            interpolation=how.interpolation,
            mean=how.mean,
            std=how.std,
            re_prob=self.random_erasing,
        )

    def eval_transform(self) -> Any:
        how = self.preprocessing
        resized = create_transform(
            how.image_size,
            interpolation=how.interpolation,
            mean=how.mean,
            crop_pct=how.crop_pct,
            crop_mode=how.crop_mode,
            use_prefetcher=True,  # uint8 comes out
        )
        return Compose([resized, Standardise(how.mean, how.std)])
