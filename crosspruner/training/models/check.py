"""Checks on networks that others wrote, before anything is trained."""

from collections.abc import Iterable
from difflib import get_close_matches

import torch
from torch import nn

from crosspruner.errors import ModelError

MISSING = "???"
"""What a configuration holds for a value that must be typed."""


def unknown_name(name: str, names: Iterable[str], library: str) -> str:
    """The message for a model name that `library` lacks, with the nearest ones it has."""
    where = f"{library}.list_models()" + ("." if library == "timm" else " in torchvision.models.")
    if name in ("", MISSING):
        return f"model.name is missing: type model.name=NAME. All names: {where}"
    near = get_close_matches(name, list(names), n=5)
    did_you_mean = f"Did you mean {', '.join(near)}?" if near else "No name there is near it."
    return (
        f"model.name={name} given: {library} has no such classifier. {did_you_mean} "
        f"All names: {where}"
    )


def check_reads(
    net: nn.Module,
    given: str,
    image_size: tuple[int, int],
    in_channels: int,
    num_classes: int,
    native_size: tuple[int, int] | None = None,
) -> None:
    """Run one empty image through `net` and look at what comes out.

    Raises:
        ModelError: the network fails on it, or gives something else than (1, num_classes) logits.
    """
    was_training = net.training
    height, width = image_size
    hint = f" It was made for {native_size[0]}x{native_size[1]}." if native_size else ""
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, in_channels, height, width))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        first_line = str(error).partition("\n")[0]
        raise ModelError(
            f"{given} does not take images of {height}x{width} pixels ({first_line}).{hint} "
            "Set data.image_size, or choose another model."
        ) from error
    finally:
        net.train(was_training)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ModelError(
            f"{given} gives {shape} for one image, not {num_classes} logits: it is no plain "
            "classifier. Choose another model."
        )
