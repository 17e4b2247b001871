"""Classifiers of torchvision: any by name, and its ResNets with a stem for small images."""

import logging
from typing import Any

import torchvision
from torch import nn
from torchvision import models

from crosspruner.errors import ModelError
from crosspruner.training.models.check import check_reads, unknown_name
from crosspruner.training.models.vgg import LARGEST_SMALL_IMAGE
from crosspruner.training.models.weights import fit_state

log = logging.getLogger(__name__)


def torchvision_model(
    name: str,
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    in_channels: int = 3,
    pretrained: bool = False,
) -> nn.Module:
    """A classifier of torchvision.models as it is there, whatever the image size.

    Args:
        name: as in torchvision.models.list_models(module=torchvision.models).
        num_classes: outputs.
        image_size: height and width in pixels.
        in_channels: input FMs; other than 3 replaces the first convolution.
        pretrained: download torchvision's default weights; layers whose shape differs (the last one
            where num_classes is not theirs) keep their random start, and are logged.

    Raises:
        ModelError: the name is unknown, the network does not take such images, or the weights
            cannot be downloaded.
    """
    names = models.list_models(module=torchvision.models)
    if name not in names:
        raise ModelError(unknown_name(name, names, "torchvision"))
    net = models.get_model(
        name, weights=None, num_classes=num_classes, **_settings(name, image_size)
    )
    _set_in_channels(net, in_channels)
    if pretrained:
        fill_pretrained(net, name)
    check_reads(net, f"model=torchvision model.name={name}", image_size, in_channels, num_classes)
    return net


def torchvision_resnet(
    name: str,
    num_classes: int,
    image_size: tuple[int, int] = (32, 32),
    in_channels: int = 3,
    pretrained: bool = False,
) -> nn.Module:
    """resnet18, resnet34 or resnet50 with torchvision's keys.

    Images above 64 pixels: torchvision's network. Up to 64 pixels: its 7x7 stride-2 stem becomes a
    3x3 convolution of stride 1, and the max pooling after it is left out.
    """
    net = models.get_model(name, weights=None, num_classes=num_classes)
    if max(image_size) <= LARGEST_SMALL_IMAGE:
        net.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    _set_in_channels(net, in_channels)
    if pretrained:
        fill_pretrained(net, name)
    return net


def fill_pretrained(net: nn.Module, name: str) -> None:
    """Copy torchvision's default weights of `name` into every layer whose shape fits."""
    try:
        state = models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"The pretrained weights of {name} cannot be downloaded ({error}). They need the "
            "internet once (they are then kept); without it give a file: model.pretrained=false "
            "model.weights=FILE."
        ) from error
    report = fit_state(net, state)
    if not report.complete:
        log.warning("Pretrained weights of %s: %s", name, report)


def _settings(name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """What some builders must be told so that they read these images and return logits alone."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": image_size[0]}
    return {"input_size": image_size} if name.startswith("maxvit") else {}


def _set_in_channels(net: nn.Module, in_channels: int) -> None:
    """Replace the first convolution where it reads another number of FMs."""
    name, old = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if old.in_channels != in_channels:
        new = nn.Conv2d(
            in_channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
        )
        net.set_submodule(name, new)
