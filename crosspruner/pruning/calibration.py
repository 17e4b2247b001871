"""Calibration images out of whatever a user iterates over.

A loader is read once and its images are held: every layer then sees the same images in the same
order, whether the loader shuffles, augments, or can only be iterated once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crosspruner.errors import DataError

IMAGE_KEYS = ("image", "images", "input", "inputs", "pixel_values", "x", "data")
"""Keys looked for, in this order, in batches that are dictionaries."""


def read_batches(loader: Iterable[Any], model: nn.Module) -> list[Tensor]:
    """The images of every batch, where and as the model takes them.

    Args:
        loader: any iterable of batches: tensors (B, ...), tuples or lists whose first tensor holds
            the images, or dictionaries with one of `IMAGE_KEYS`.
        model: whose images they are (`as_network_takes`).

    Returns:
        Tensors (B, ...) of one image shape, at least one, none empty.

    Raises:
        DataError: not an iterable, no batch, no tensor in a batch, shapes that differ, NaN or Inf.
    """
    if isinstance(loader, Tensor):
        loader = [loader]  # iterating over a tensor would give single images
    try:
        iterator = iter(loader)
    except TypeError as error:
        raise DataError(
            f"the calibration loader is a {type(loader).__name__}: give an iterable of batches, "
            "such as a DataLoader or a list of tensors"
        ) from error
    batches: list[Tensor] = []
    for number, batch in enumerate(iterator):
        images = images_of(batch).detach()
        if not len(images):
            continue
        if batches and images.shape[1:] != batches[0].shape[1:]:
            raise DataError(
                f"calibration batch {number} has images of shape {tuple(images.shape[1:])}, the "
                f"first one {tuple(batches[0].shape[1:])}: give images of one shape"
            )
        images = as_network_takes(images, model)
        if not bool(images.isfinite().all()):
            raise DataError(f"calibration batch {number} holds NaN or Inf: clean the images")
        batches.append(images)
    if not batches:
        raise DataError(
            "the calibration loader gave no images: a generator that was used up gives none a "
            "second time; pass a DataLoader or a list of batches"
        )
    return batches


def as_network_takes(images: Tensor, network: nn.Module) -> Tensor:
    """Images on the device of a network's weights, and in their dtype.

    Whole numbers stay whole numbers: bytes that the network scales, indices that it looks up.

    Args:
        images: (B, ...).
        network: its first floating-point parameter says where they go.
    """
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    return images.to(like.device, like.dtype if images.is_floating_point() else None)


def images_of(batch: Any) -> Tensor:
    """The images of one batch.

    Raises:
        DataError: there is no tensor where one is looked for.
    """
    if isinstance(batch, Tensor) and batch.dim() > 1:
        return batch
    if isinstance(batch, Mapping):
        for key in IMAGE_KEYS:
            if isinstance(batch.get(key), Tensor):
                return batch[key]
        raise DataError(
            f"a calibration batch is a dictionary with the keys {sorted(map(str, batch))}: put the "
            f"images under one of {', '.join(IMAGE_KEYS)}"
        )
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor | Mapping):
        return images_of(batch[0])
    kind, hint = type(batch).__name__, ""
    if isinstance(batch, Tensor):
        kind = f"tensor of shape {tuple(batch.shape)}"
        hint = "; did you pass a Dataset? Wrap it in a DataLoader"
    raise DataError(
        f"a calibration batch is a {kind}: give a tensor (B, ...), a tuple (images, ...) or a "
        f"dictionary of tensors{hint}"
    )
