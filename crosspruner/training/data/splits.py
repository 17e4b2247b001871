"""Cutting a labelled set in two, at random but with equal shares of every class."""

import math

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from crosspruner.errors import DataError


def stratified_split(
    labels: Tensor, fraction: float, seed: int, part: str
) -> tuple[Tensor, Tensor]:
    """Indices that stay, and indices that are held out.

    Args:
        labels: (N,) int64.
        fraction: share of the images to hold out, in (0, 1).
        seed: >= 0; the same seed holds out the same images.
        part: what the held-out part is for, for messages: "validation" or "test".

    Returns:
        Two sorted int64 tensors that together hold 0..N-1 once; each class is in both.

    Raises:
        DataError: the fraction is out of range, or a class is too small to be in both parts.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(
            f"{part} fraction {fraction} given: it must lie between 0 and 1, both excluded "
            "(0.1 holds out a tenth of the training images)."
        )
    counts = labels.unique(return_counts=True)[1]
    try:
        stay, held_out = train_test_split(
            range(len(labels)), test_size=fraction, stratify=labels.numpy(), random_state=seed
        )
    except ValueError as error:
        held = math.ceil(fraction * len(labels))
        reason = (
            "the smallest class has 1 image"
            if counts.min() < 2
            else f"that leaves {len(labels) - held} and {held} images"
        )
        raise DataError(
            f"Cannot hold out {fraction:g} of {len(labels)} images in {len(counts)} classes for "
            f"{part}: {reason}. Every class needs an image on both sides: add images, or change "
            "the fraction."
        ) from error
    return torch.tensor(sorted(stay)), torch.tensor(sorted(held_out))
