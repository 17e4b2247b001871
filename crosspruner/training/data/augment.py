"""Augmentation: batched crops and flips for small images, torchvision's own for large ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BatchRandomCrop(v2.Transform):
    """Shift every image of a batch by its own random offset: zero-pad, then crop back to size.

    Same distribution as v2.RandomCrop(size, padding) per image, in one indexing operation.

    Args:
        padding: pixels added on each side, >= 0; offsets are uniform in [-padding, padding].
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        offsets = torch.randint(0, 2 * self.padding + 1, (2, flat_inputs[0].shape[0]))
        return {"top": offsets[0], "left": offsets[1]}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """inpt (B, C, H, W), any dtype -> the same shape and dtype."""
        batch, _, height, width = inpt.shape
        padded = pad(inpt, [self.padding] * 4)
        # (B, C, 2*padding+1, 2*padding+1, H, W), a view: every crop there is
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(batch), :, params["top"], params["left"]]


class BatchRandomHorizontalFlip(v2.Transform):
    """Mirror every image of a batch left to right with probability `p`, each by its own draw."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"flip": torch.rand(flat_inputs[0].shape[0]) < self.p}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """inpt (B, C, H, W), any dtype -> the same shape and dtype."""
        return torch.where(params["flip"].view(-1, 1, 1, 1), inpt.flip(-1), inpt)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> list[v2.Transform]:
    """uint8 in 0..255 -> float32 with mean 0 and deviation 1 per channel."""
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def batch_augmentation(crop_padding: int, horizontal_flip: bool) -> list[v2.Transform]:
    """The steps that vary a batch of small uint8 images (B, C, H, W)."""
    steps: list[v2.Transform] = []
    if crop_padding:
        steps.append(BatchRandomCrop(crop_padding))
    if horizontal_flip:
        steps.append(BatchRandomHorizontalFlip())
    return steps


def large_augmentation(image_size: tuple[int, int], horizontal_flip: bool) -> list[v2.Transform]:
    """The steps that vary one large image: a random part of it, resized (the Inception crop)."""
    steps: list[v2.Transform] = [v2.ToImage(), v2.RandomResizedCrop(image_size, antialias=True)]
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    return steps


def large_centre_crop(image_size: tuple[int, int]) -> list[v2.Transform]:
    """One large image: shorter side to 8/7 of the crop (256 for 224), then the centre."""
    return [
        v2.ToImage(),
        v2.Resize(max(image_size) * 8 // 7, antialias=True),
        v2.CenterCrop(image_size),
    ]
