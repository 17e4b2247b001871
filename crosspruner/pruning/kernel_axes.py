"""How the kernel of a convolution moves over its maps, along each axis.

A place of the kernel reads a run of pixels, one for each position of the kernel; which of them are
padding, and which have a pixel of another place beside them, is what `LagSums` need to know.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from crosspruner.hardware.layer_modules import window_of
from crosspruner.pruning.targets import Targets


@dataclass(frozen=True)
class Axis:
    """How a kernel moves along one axis of its maps, one pixel a step."""

    size: int
    """Pixels of the maps, padding left out."""
    out: int
    """Positions of the kernel."""
    places: int
    """Of the kernel."""
    dilation: int
    before: int
    """Pixels of padding before the maps."""

    @property
    def after(self) -> int:
        """Pixels of padding after the maps."""
        return self.out + self.reach - self.size - self.before

    @property
    def reach(self) -> int:
        """Pixels from the first to the last place of the kernel: the largest lag."""
        return self.dilation * (self.places - 1)

    def pixels(self, place: int, lag: int = 0) -> tuple[int, int]:
        """The pixels start..stop that a place reads over all positions, as far as they, and those
        that the place `lag` places further reads, are on the maps."""
        least, most = self._paired(lag)
        first = place * self.dilation - self.before
        start, stop = (min(max(bound, least), most) for bound in (first, first + self.out))
        return start, stop

    def pieces(self, lag: int) -> list[tuple[int, int]]:
        """The pixels that have one `lag` places further, cut so that `pixels` of every place is
        whole pieces."""
        places = range(max(0, -lag), self.places - max(0, lag))
        bounds = {bound for place in places for bound in self.pixels(place, lag)}
        return list(pairwise(sorted(bounds | set(self._paired(lag)))))

    def _paired(self, lag: int) -> tuple[int, int]:
        """The pixels start..stop that have one `lag` places further."""
        start, shift = max(0, -lag * self.dilation), lag * self.dilation
        return start, max(start, min(self.size, self.size - shift))


def kernel_axes(
    module: nn.Module, maps: Tensor, padding: tuple[int, int, int, int], targets: Targets
) -> tuple[Axis, Axis] | None:
    """How a layer's kernel moves down and across its maps.

    Args:
        module: one of `layer_modules.LAYERS`.
        maps: (N, Cin, H, W) without padding, as `maps_and_padding` has them.
        padding: zeros left, right, above and below.
        targets: of the positions that count.

    Returns:
        None where it steps over pixels, or does not stand at all positions, each once and in order.
    """
    kernel, stride, dilation = window_of(module)
    every = torch.arange(targets.size[0] * targets.size[1], device=targets.positions.device)
    if stride != (1, 1) or not torch.equal(targets.positions, every):
        return None
    before = padding[2], padding[0]
    down, across = map(Axis, maps.shape[2:], targets.size, kernel, dilation, before)
    return down, across
