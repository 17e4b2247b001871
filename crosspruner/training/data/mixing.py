"""Mixup and cutmix: batches of pairs of images, with labels in the same shares."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from crosspruner.training.data.randomness import Stream, keyed_rng


class Mixing:
    """Mixes each image of a batch with its neighbour there.

    Args:
        num_classes: >= 2.
        mixup: alpha of mixup, >= 0; 0 = off.
        cutmix: alpha of cutmix, >= 0; 0 = off. With both on, each batch gets one of them, drawn.
        share: share of the batches that are mixed, in (0, 1].

    Source: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019; as in torchvision.
    """

    def __init__(
        self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0, share: float = 1.0
    ) -> None:
        self.share = share
        self.ways: list[v2.Transform] = []
        if mixup > 0:
            self.ways.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
        if cutmix > 0:
            self.ways.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))

    def __call__(
        self, images: Tensor, labels: Tensor, key: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Mix one batch.

        Args:
            images: (B, C, H, W).
            labels: (B,) int64.
            key: what the draws depend on; None = on the global generator.

        Returns:
            Images of the same shape, and labels (B, num_classes) that sum to 1 per image; both as
            they were where this batch is not mixed.
        """
        if not self.ways:
            return images, labels
        if key is None:
            return self._mixed(images, labels)
        with keyed_rng(Stream.MIXING, *key):
            return self._mixed(images, labels)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if float(torch.rand(())) >= self.share:
            return images, labels
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        return way(images, labels)
