"""Models by name."""

from collections.abc import Callable
from difflib import get_close_matches

from torch import nn

from crosspruner.errors import ModelError
from crosspruner.training.models.vgg import vgg8, vgg16

SCALABLE: dict[str, Callable[..., nn.Module]] = {"vgg8": vgg8, "vgg16": vgg16}


def build_model(
    name: str,
    num_classes: int,
    image_size: tuple[int, int] = (32, 32),
    in_channels: int = 3,
    width: float = 1.0,
) -> nn.Module:
    """Build a network."""
    if name not in SCALABLE:
        near = get_close_matches(name, SCALABLE)
        raise ModelError(f"Unknown model {name!r}{near}")
    return SCALABLE[name](num_classes, tuple(image_size), in_channels, width)
