"""The shapes of one layer, whatever chip it will run on."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerGeometry:
    """The shapes of one layer, everything that its crossbar count depends on.

    Pairs are (height, width). A linear layer is a 1x1 convolution of one position. A Conv1d runs
    down the height. A Conv3d is a Conv2d over (channel, kernel depth) pairs, called once per output
    depth; a ConvTranspose2d is a Conv2d of stride 1 over an input with zeros in between.
    """

    name: str
    """Dotted module name."""
    kind: str
    """"conv" or "linear"."""
    in_channels: int
    """Input FMs (linear: input features; Conv3d: channels times kernel depth), all conv groups
    together."""
    out_channels: int
    """Output FMs, all conv groups together."""
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    """Zeros above and to the left (negative: what is cut off there); those below and to the right
    follow from `out_size`."""
    dilation: tuple[int, int] = (1, 1)
    conv_groups: int = 1
    """`groups` of the convolution: that many separate unrolled kernel matrices."""
    in_size: tuple[int, int] = (1, 1)
    """Input FM size. With a padding mode other than zeros: the size after padding."""
    out_size: tuple[int, int] = (1, 1)
    calls: int = 1
    """Times the layer is applied per image (a shared module; a linear layer over tokens)."""
    sections: int = 1
    """Equal runs of outputs that an output group never crosses: 3 for a fused query-key-value
    projection (three matrices of the same inputs), times the heads where heads are respected."""

    @property
    def group_inputs(self) -> int:
        """Input FMs of one conv group."""
        return self.in_channels // self.conv_groups

    @property
    def group_outputs(self) -> int:
        """Output FMs of one conv group."""
        return self.out_channels // self.conv_groups

    @property
    def macs(self) -> int:
        """Multiplications of a weight and an input per image, those with zero padding included."""
        positions = self.out_size[0] * self.out_size[1] * self.calls
        return self.out_channels * self.group_inputs * self.kernel[0] * self.kernel[1] * positions


def pair(values: Any) -> tuple[int, int]:
    """Two numbers as (height, width)."""
    high, wide = values
    return int(high), int(wide)
