"""The shapes of one layer, whatever chip it will run on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerGeometry:
    """The shapes of one layer, everything that its crossbar count depends on.

    Pairs are (height, width). A linear layer is a 1x1 convolution of one position.
    """

    name: str
    """Dotted module name."""
    kind: str
    """"conv" or "linear"."""
    in_channels: int
    """Input FMs (linear: input features), all conv groups together."""
    out_channels: int
    """Output FMs, all conv groups together."""
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    """Zeros above and to the left; those below and to the right follow from `out_size`."""
    dilation: tuple[int, int] = (1, 1)
    conv_groups: int = 1
    """`groups` of the convolution: that many separate unrolled kernel matrices."""
    in_size: tuple[int, int] = (1, 1)
    """Input FM size. With a padding mode other than zeros: the size after padding."""
    out_size: tuple[int, int] = (1, 1)
    calls: int = 1
    """Times the layer is applied per image (a shared module; a linear layer over tokens)."""

    @property
    def group_inputs(self) -> int:
        """Input FMs of one conv group."""
        return self.in_channels // self.conv_groups

    @property
    def group_outputs(self) -> int:
        """Output FMs of one conv group."""
        return self.out_channels // self.conv_groups
