"""Made-up images for tests and benchmarks: any size, any number of classes, and learnable."""

from typing import Any

import torch
from torch.nn.functional import interpolate

from crosspruner.errors import DataError
from crosspruner.training.data.base import ImageData, Splits
from crosspruner.training.data.checks import check_count, height_and_width
from crosspruner.training.data.images import CachedImages
from crosspruner.training.data.randomness import Stream, keyed_generator


class SyntheticData(ImageData):
    """Each class is a smooth random pattern; an image is its class's pattern plus noise.

    The same arguments always give the same images. All are held in memory.

    Args:
        num_images: of all three splits together; a fifth is for test, `val_fraction` of the rest
            for validation.
        num_classes: at least 1; images are dealt out evenly.
        image_size: height and width in pixels, or one number for both.
        noise: deviation of the noise over that of the patterns; 0 is trivial, above 3 hard.
        **settings: those of ImageData; horizontal_flip is off unless given: patterns have a side.

    Raises:
        DataError: a number is out of range, or (on setup) too small for three splits.
    """

    def __init__(
        self,
        num_images: int = 2048,
        num_classes: int = 10,
        image_size: int | tuple[int, int] = 32,
        noise: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(**{"horizontal_flip": False, **settings})
        check_count("num_images", num_images, least=1)
        check_count("num_classes", num_classes, least=1)
        if not noise >= 0:
            raise DataError(f"data.noise={noise} given: it must be 0 or more.")
        self.num_images = num_images
        self.class_count = num_classes
        self.size = height_and_width(image_size)
        self.noise = noise

    def load(self) -> Splits:
        generator = keyed_generator(Stream.SYNTHETIC, self.split_seed)
        coarse = torch.randn(self.class_count, 3, 4, 4, generator=generator)
        patterns = interpolate(coarse, self.size, mode="bilinear", align_corners=False)
        labels = torch.arange(self.num_images) % self.class_count
        images = torch.empty(self.num_images, 3, *self.size, dtype=torch.uint8)
        for chunk, of_class in zip(images.split(512), labels.split(512), strict=True):
            noise = torch.randn(chunk.shape, generator=generator)
            # 40 grey levels per deviation keeps nearly all of them inside 0..255
            levels = 128 + 40 * (patterns[of_class] + self.noise * noise)
            chunk.copy_(levels.round().clamp(0, 255))
        rest, test = self.hold_out(CachedImages(images, labels), 0.2, "test")
        train, val = self.hold_out(rest, self.val_fraction, "validation")
        names = tuple(f"pattern_{label}" for label in range(self.class_count))
        return Splits(train, val, test, names, self.size)
