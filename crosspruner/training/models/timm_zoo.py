"""Classifiers of timm, any by name."""

from contextlib import nullcontext
from typing import Any

import timm
from huggingface_hub.constants import ENDPOINT as HUB
from torch import nn

from crosspruner.errors import ModelError
from crosspruner.training.models.check import check_reads, unknown_name
from crosspruner.training.models.hub import hub_or_cache


def timm_model(
    name: str,
    num_classes: int,
    image_size: tuple[int, int] = (224, 224),
    in_channels: int = 3,
    pretrained: bool = False,
) -> nn.Module:
    """A network of timm as it is there; those of fixed size (transformers) are built for this one.

    Args:
        name: as in timm.list_models(), with or without a weight tag ("resnet18.a1_in1k").
        num_classes: outputs; pretrained networks get a new last layer where theirs has others.
        image_size: height and width in pixels.
        in_channels: input FMs; pretrained stems are adapted by timm.
        pretrained: download timm's weights.

    Raises:
        ModelError: the name is unknown, the network does not take such images, or the weights
            cannot be downloaded.
    """
    if not timm.is_model(name):
        raise ModelError(unknown_name(name, timm.list_models(), "timm"))
    given = f"model=timm model.name={name}"
    config, why = None, ""
    try:
        config = timm.get_pretrained_cfg(name)
        fixed: dict[str, Any] = {}
        if config is not None and config.fixed_input_size:
            fixed["img_size"] = image_size
        with hub_or_cache() if pretrained else nullcontext("") as why:
            net = timm.create_model(
                name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **fixed
            )
    except (OSError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        advice = "Choose another name, or another data.image_size."
        if pretrained:
            source = config.hf_hub_id if config is not None else None
            advice = (
                "Pretrained weights need the internet once (they are then kept); without it give a "
                "file: model.pretrained=false model.weights=FILE"
                + (f", with model.safetensors of {HUB}/{source} as FILE." if source else ".")
            )
        reason = f"{HUB} cannot be reached: {why}" if why else error
        raise ModelError(f"{given} cannot be built ({reason}). {advice}") from error
    native = config.input_size[1:] if config is not None else None
    check_reads(net, given, image_size, in_channels, num_classes, native)
    return net
