"""Any network by family and name."""

from collections.abc import Callable
from difflib import get_close_matches

from torch import nn

from crosspruner.errors import ModelError
from crosspruner.training.models.resnet20 import ResNet20
from crosspruner.training.models.timm_zoo import timm_model
from crosspruner.training.models.torchvision_zoo import torchvision_model, torchvision_resnet
from crosspruner.training.models.vgg import vgg8, vgg16

OWN = ("vgg8", "vgg16", "resnet20", "resnet18", "resnet34", "resnet50")
SCALABLE = ("vgg8", "vgg16", "resnet20")
ZOOS: dict[str, Callable[..., nn.Module]] = {
    "timm": timm_model,
    "torchvision": torchvision_model,
}


def build_model(
    name: str,
    num_classes: int,
    image_size: tuple[int, int] = (32, 32),
    in_channels: int = 3,
    width: float = 1.0,
    family: str = "crosspruner",
    pretrained: bool = False,
) -> nn.Module:
    """Build a classifier: images (B, in_channels, H, W) -> logits (B, num_classes).

    Args:
        name: vgg8, vgg16, resnet20, resnet18, resnet34 or resnet50; with family "timm" or
            "torchvision" any classifier of theirs.
        num_classes: outputs, at least 1.
        image_size: height and width in pixels. Up to 64 pixels our VGG16 and ResNets take their
            form for small images, above it torchvision's; networks of a zoo are taken as they are.
        in_channels: input FMs, at least 1.
        width: factor on the FMs of vgg8, vgg16 and resnet20, in (0, 8]; others only come at 1.
        family: "crosspruner" (the six above), "timm" or "torchvision".
        pretrained: download weights (resnet18/34/50 and the zoos).

    Raises:
        ModelError: unknown family or name, a number out of range, images that the network does not
            take, or weights that do not exist or cannot be downloaded.
    """
    height, breadth = image_size
    if min(num_classes, height, breadth, in_channels) < 1:
        raise ModelError(
            f"A model for {num_classes} classes of {height}x{breadth} images with {in_channels} "
            "channels was asked for: each number must be 1 or more."
        )
    size = (height, breadth)
    if family not in ("crosspruner", *ZOOS):
        raise ModelError(
            f"model.family={family} given: it must be crosspruner, {' or '.join(ZOOS)}."
        )
    if width != 1.0 and (family != "crosspruner" or name not in SCALABLE):
        raise ModelError(
            f"model.width={width} given: {name} only comes at width 1. "
            f"{', '.join(SCALABLE)} can be scaled."
        )
    if family in ZOOS:
        return ZOOS[family](name, num_classes, size, in_channels, pretrained)
    if name in ("resnet18", "resnet34", "resnet50"):
        return torchvision_resnet(name, num_classes, size, in_channels, pretrained)
    if name not in OWN:
        near = get_close_matches(name, OWN, n=1)
        raise ModelError(
            f"model.name={name} given: it must be one of {', '.join(OWN)}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + f", or a name of a zoo: model=timm model.name={name}."
        )
    if pretrained:
        raise ModelError(
            f"model.pretrained=true given: there are no weights of {name} to download. Give a "
            "file: model.weights=FILE."
        )
    if name == "resnet20":
        return ResNet20(num_classes, in_channels, width)
    return {"vgg8": vgg8, "vgg16": vgg16}[name](num_classes, size, in_channels, width)
