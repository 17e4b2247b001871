"""ResNet20 for small images, as in He et al., "Deep Residual Learning", section 4.2."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.resnet import BasicBlock

from crosspruner.training.models.width import scaled


class ZeroPaddedShortcut(nn.Module):
    """The parameter-free shortcut (the paper's option A): every second pixel, new FMs all zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class ResNet20(nn.Module):
    """3x3 stem, three stages of three basic blocks with 16, 32, 64 FMs, average, linear.

    Blocks and keys are torchvision's (conv1, bn1, layer1.0.conv1, ..., fc). Where a stage halves
    the image the shortcut is ZeroPaddedShortcut: the paper's choice on CIFAR, no weights to map.

    Args:
        num_classes: outputs.
        in_channels: input FMs.
        width: factor on 16, 32, 64; in (0, 8].
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        stages = [scaled(channels, width) for channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(in_channels, stages[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stages[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(stages[0], stages[0], stride=1)
        self.layer2 = _stage(stages[0], stages[1], stride=2)
        self.layer3 = _stage(stages[1], stages[2], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """images (B, in_channels, H, W) -> logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    shortcut = ZeroPaddedShortcut(in_channels, out_channels, stride) if stride > 1 else None
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(2)))
