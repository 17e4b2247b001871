"""VGG networks with batch-norm: VGG8, and VGG16 for small images and for large ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosspruner.errors import ModelError
from crosspruner.training.models.width import scaled

VGG8_BLOCKS = ((128, 128), (256, 256), (512, 512))
VGG16_BLOCKS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)

LARGEST_SMALL_IMAGE = 64
"""Side in pixels up to which networks take their form for small images (CIFAR)."""


class VGG(nn.Module):
    """Blocks of 3x3 convolution, batch-norm and ReLU with 2x2 max pooling, then linear layers.

    Keys and layer order are torchvision's: features.* and classifier.*.

    Args:
        blocks: output FMs of the convolutions of each block; each block ends in 2x2 max pooling.
        hidden: widths of the hidden linear layers.
        num_classes: outputs.
        image_size: height and width in pixels; rows and columns that do not divide by two are
            dropped by the pooling.
        in_channels: input FMs.
        pooled_size: height and width that the features are averaged to before the linear layers
            (torchvision: 7x7); None takes them as they come.
        dropout: probability after each hidden linear layer; 0 builds no dropout layer.
        conv_bias: whether convolutions have a bias (torchvision: yes; batch-norm cancels it).

    Raises:
        ModelError: the image is too small for the number of poolings.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        hidden: Sequence[int],
        num_classes: int,
        image_size: tuple[int, int],
        in_channels: int = 3,
        pooled_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        height, width = (side >> len(blocks) for side in image_size)
        if min(height, width) < 1:
            raise ModelError(
                f"Images of {image_size[0]}x{image_size[1]} pixels are too small for this VGG: "
                f"its {len(blocks)} poolings need {1 << len(blocks)}x{1 << len(blocks)} or more. "
                "Use larger images (data.image_size) or model=vgg8."
            )
        layers: list[nn.Module] = []
        fan_in = in_channels
        for block in blocks:
            for out in block:
                layers += [
                    nn.Conv2d(fan_in, out, kernel_size=3, padding=1, bias=conv_bias),
                    nn.BatchNorm2d(out),
                    nn.ReLU(inplace=True),
                ]
                fan_in = out
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pooled_size) if pooled_size else nn.Identity()
        height, width = pooled_size or (height, width)

        layers = []
        fan_in *= height * width
        for out in hidden:
            layers += [nn.Linear(fan_in, out), nn.ReLU(inplace=True)]
            layers += [nn.Dropout(dropout)] if dropout else []
            fan_in = out
        self.classifier = nn.Sequential(*layers, nn.Linear(fan_in, num_classes))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """images (B, in_channels, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg8(
    num_classes: int,
    image_size: tuple[int, int] = (32, 32),
    in_channels: int = 3,
    width: float = 1.0,
) -> VGG:
    """VGG8: 2x128, 2x256 and 2x512 convolutions and a linear layer of 1024, all times `width`."""
    return VGG(
        [[scaled(out, width) for out in block] for block in VGG8_BLOCKS],
        [scaled(1024, width)],
        num_classes,
        image_size,
        in_channels,
        conv_bias=False,
    )


def vgg16(
    num_classes: int,
    image_size: tuple[int, int] = (32, 32),
    in_channels: int = 3,
    width: float = 1.0,
) -> VGG:
    """VGG16 with batch-norm.

    Images above 64 pixels: torchvision's vgg16_bn. Up to 64 pixels: the same convolutions, no
    averaging, and hidden linear layers of 512 instead of 4096 (the CIFAR form) with dropout 0.2
    instead of 0.5: with 0.5 it hardly starts to learn from a small set. Every number of FMs and
    hidden units is multiplied by `width`.
    """
    small = max(image_size) <= LARGEST_SMALL_IMAGE
    return VGG(
        [[scaled(out, width) for out in block] for block in VGG16_BLOCKS],
        [scaled(512 if small else 4096, width)] * 2,
        num_classes,
        image_size,
        in_channels,
        pooled_size=None if small else (7, 7),
        dropout=0.2 if small else 0.5,
    )


def _initialise(module: nn.Module) -> None:
    """He for every layer, zero biases.

    Differs: torchvision draws linear layers from N(0, 0.01), made for its 25088 and 4096 inputs;
    with the few inputs of the small forms hardly any gradient passes, and they do not start.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
