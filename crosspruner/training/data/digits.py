"""The embedded default: scikit-learn's 1,797 handwritten digits, enlarged to 32x32."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torchvision.transforms.v2.functional import resize

from crosspruner.training.data.base import ImageData, Splits
from crosspruner.training.data.checks import check_fraction
from crosspruner.training.data.images import CachedImages


class DigitsData(ImageData):
    """1,797 digits of 8x8 pixels, enlarged to 32x32 (bilinear), three equal channels, ten classes.

    Comes with scikit-learn: no download. It has no split of its own, so a stratified part is held
    out for test and another for validation, both by `split_seed`.

    Args:
        test_fraction: share of all images that is held out for test, in (0, 1).
        **settings: those of ImageData; horizontal_flip is off unless given, as digits have a side.

    Source: UCI "Optical Recognition of Handwritten Digits" (test part), as scikit-learn ships it.
    """

    def __init__(self, test_fraction: float = 0.2, **settings: Any) -> None:
        super().__init__(**{"horizontal_flip": False, **settings})
        check_fraction("test_fraction", test_fraction)
        self.test_fraction = test_fraction

    def load(self) -> Splits:
        digits = load_digits()
        grey = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)  # levels 0..16
        pixels = resize(grey, [32, 32]).round().to(torch.uint8).repeat(1, 3, 1, 1)
        images = CachedImages(pixels, torch.from_numpy(digits.target).long())
        rest, test = self.hold_out(images, self.test_fraction, "test")
        train, val = self.hold_out(rest, self.val_fraction, "validation")
        return Splits(train, val, test, tuple(str(digit) for digit in range(10)), (32, 32))
