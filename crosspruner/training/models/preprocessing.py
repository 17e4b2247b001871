"""What a network's published weights were trained and measured on: size, crop, scale of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.data import resolve_data_config
from torchvision import models

DEFAULT: dict[str, Any] = {"input_size": (3, 224, 224)}
"""Of networks without published weights; the rest is timm's default (bicubic, crop 0.875)."""

# Ours of these names take torchvision's weights.
_AS_TORCHVISION = ("resnet18", "resnet34", "resnet50")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes what a network reads, in timm's words."""

    image_size: tuple[int, int]
    """Height and width in pixels at which the network is measured."""
    train_size: tuple[int, int]
    """Those at which it is trained; often smaller."""
    interpolation: str
    """bicubic, bilinear, ..."""
    crop_pct: float
    """Side of the centre crop over that of the resized image."""
    crop_mode: str
    """center, squash or border: what happens to the image's aspect ratio."""
    mean: tuple[float, ...]
    """Per channel, on a scale of 0 to 1."""
    std: tuple[float, ...]
    """Per channel, on a scale of 0 to 1."""


def preprocessing_of(
    family: str, name: str, changes: Mapping[str, Any] | None = None
) -> Preprocessing:
    """What suits a network's published weights; timm's defaults where it has none.

    Args:
        family: "timm", "torchvision" or "crosspruner".
        name: of the network.
        changes: of timm's data configuration: img_size, interpolation, crop_pct, crop_mode, mean,
            std; those that are None are not changed.

    Source: timm's data configuration, with its size at test time (`timm.data.resolve_data_config`);
    torchvision's weight transforms.
    """
    published = _published(family, name)
    args = {key: value for key, value in (changes or {}).items() if value is not None}
    measured, trained = (
        resolve_data_config(dict(args), pretrained_cfg=published, use_test_size=at_test)
        for at_test in (True, False)
    )
    return Preprocessing(
        tuple(measured["input_size"][1:]),
        tuple(trained["input_size"][1:]),
        measured["interpolation"],
        measured["crop_pct"],
        measured["crop_mode"],
        tuple(measured["mean"]),
        tuple(measured["std"]),
    )


def _published(family: str, name: str) -> dict[str, Any]:
    if family == "timm":
        try:
            config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        except RuntimeError:  # an unknown weight tag: who builds the network says so
            config = None
        return DEFAULT if config is None else config.to_dict()
    as_torchvision = family == "torchvision" or name in _AS_TORCHVISION
    if as_torchvision and name in models.list_models(module=models):
        weights: Any = models.get_model_weights(name)
        return _as_timm(weights.DEFAULT.transforms())
    return DEFAULT


def _as_timm(preset: Any) -> dict[str, Any]:
    """torchvision's preset for evaluation in timm's words."""
    (crop,), (resized,) = preset.crop_size, preset.resize_size
    return {
        "input_size": (3, crop, crop),
        "interpolation": preset.interpolation.value,
        # timm rounds crop / crop_pct down: half a pixel more gives `resized`, whatever the rounding
        "crop_pct": crop / (resized + 0.5),
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
    }
