"""Which weights of a layer form which group.

A layer's weight is read as one matrix per convolution group, rows = (input FM, kernel position),
columns = output FM. Its rows are cut into P input groups of Kin FMs, its columns into Q output
groups of Kout FMs. What is removed as a unit is

    grain "crossbar"   the block (output group q, input group p): one crossbar and its slices
    grain "column"     one column of such a block: (output FM o, input group p)

A mask is a bool tensor (U, P), one row per *unit*: U = conv_groups * Q output groups, or U = Cout
output FMs. Conv groups that share crossbars block-diagonally (a bundle) share their units too:
U = conv_groups / bundle * Q, a unit being the q-th block of each of them. Every operation here is a
gather or a scatter over that small tensor.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crosspruner.errors import ConfigError
from crosspruner.hardware import LayerPlan, count_blocks
from crosspruner.hardware.packing import GRAINS


@dataclass(frozen=True, eq=False)
class GroupLayout:
    """The group structure of one layer.

    Args:
        name: dotted name of the layer in the model.
        grain: "crossbar" or "column".
        out_channels: output FMs, Cout.
        fan_in: input FMs of one convolution group, Cin / conv_groups.
        conv_groups: groups of the convolution (1 for dense and linear layers).
        kin: input FMs whose rows share a crossbar, 1..fan_in.
        kout: output FMs whose columns share a crossbar, all conv groups of a bundle together.
        crossbars_per_block: physical crossbars one block takes: slices * row splits.
        input_order: (conv_groups, fan_in) int64 permutation, place -> input FM; None = as given.
        output_order: (conv_groups, Cout / conv_groups) permutation, likewise; None = as given.
        bundle: conv groups that share a crossbar block-diagonally.
        sections: equal runs of outputs within a conv group that never share a crossbar.

    Raises:
        ConfigError: unknown grain.
    """

    name: str
    grain: str
    out_channels: int
    fan_in: int
    conv_groups: int
    kin: int
    kout: int
    crossbars_per_block: int = 1
    input_order: Tensor | None = None
    output_order: Tensor | None = None
    bundle: int = 1
    sections: int = 1

    def __post_init__(self) -> None:
        if self.grain not in GRAINS:
            raise ConfigError(f"grain={self.grain!r} is unknown: use one of {', '.join(GRAINS)}")

    @classmethod
    def of(cls, layer: LayerPlan, grain: str) -> "GroupLayout":
        """The groups of a planned layer at a grain."""
        geometry = layer.geometry
        return cls(
            name=layer.name,
            grain=grain,
            out_channels=geometry.out_channels,
            fan_in=geometry.in_channels // geometry.conv_groups,
            conv_groups=geometry.conv_groups,
            kin=layer.kin,
            kout=layer.kout * layer.bundle,
            crossbars_per_block=layer.slices * layer.row_splits,
            input_order=layer.input_order,
            output_order=layer.output_order,
            bundle=layer.bundle,
            sections=geometry.sections,
        )

    @property
    def outputs_per_conv_group(self) -> int:
        """Output FMs of one convolution group."""
        return self.out_channels // self.conv_groups

    @property
    def input_groups(self) -> int:
        """P: input groups of one convolution group."""
        return -(-self.fan_in // self.kin)

    @property
    def output_groups(self) -> int:
        """Q: output groups of one convolution group, those of all its sections."""
        return self.sections * self.lane_groups

    @property
    def lanes(self) -> int:
        """Runs of outputs within which columns may share crossbars."""
        return self.conv_groups // self.bundle * self.sections

    @property
    def lane_groups(self) -> int:
        """Crossbars that one lane takes per input group, dense."""
        return -(-self.out_channels // self.lanes // self.kout)

    @property
    def units(self) -> int:
        """U: rows of a mask."""
        return self.fewest_blocks if self.grain == "crossbar" else self.out_channels

    @property
    def shape(self) -> tuple[int, int]:
        """(U, P), the shape of a mask."""
        return self.units, self.input_groups

    @property
    def blocks(self) -> int:
        """Blocks of the dense layer; times crossbars_per_block = its compute crossbars."""
        return self.lanes * self.lane_groups * self.input_groups

    @property
    def fewest_blocks(self) -> int:
        """Blocks without which some output would lose its last input group."""
        return self.lanes * self.lane_groups

    @cached_property
    def unit_of_output(self) -> Tensor:
        """(Cout,) int64: the mask row that rules each output FM."""
        if self.grain == "column":
            return torch.arange(self.out_channels)
        outputs = self.outputs_per_conv_group
        place = torch.arange(outputs).expand(self.conv_groups, outputs)
        if self.output_order is not None:
            place = torch.argsort(self.output_order, dim=1)
        first = torch.arange(self.conv_groups).unsqueeze(1) // self.bundle * self.output_groups
        section = outputs // self.sections
        within = place % section // (self.kout // self.bundle)
        return (first + place // section * self.lane_groups + within).reshape(-1)

    @cached_property
    def group_of_input(self) -> Tensor:
        """(conv_groups, fan_in) int64: the input group of each input FM."""
        place = torch.arange(self.fan_in).expand(self.conv_groups, self.fan_in)
        if self.input_order is not None:
            place = torch.argsort(self.input_order, dim=1)
        return place // self.kin

    @cached_property
    def _columns(self) -> Tensor:
        """(Cout, fan_in) int64: the mask column that rules each kernel."""
        return self.group_of_input.repeat_interleave(self.outputs_per_conv_group, dim=0)

    def expand(self, mask: Tensor) -> Tensor:
        """Spread one value per group over the kernels of the layer.

        Args:
            mask: (U, P), any dtype.

        Returns:
            (Cout, fan_in) of the same dtype; append singleton axes to multiply a weight by it.
        """
        rows = self.unit_of_output.to(mask.device).unsqueeze(1)
        return mask[rows, self._columns.to(mask.device)]

    def expand_like(self, mask: Tensor, weight: Tensor) -> Tensor:
        """`expand`, with as many singleton axes as it takes to broadcast against `weight`."""
        spread = self.expand(mask)
        return spread.reshape(spread.shape + (1,) * (weight.dim() - 2))

    def sum_by_group(self, values: Tensor) -> Tensor:
        """Sum a weight-shaped tensor over each group.

        Args:
            values: (Cout, fan_in, ...) one value per weight.

        Returns:
            (U, P) sums.
        """
        kernels = values.flatten(2).sum(dim=2) if values.dim() > 2 else values
        by_input = kernels.new_zeros(self.out_channels, self.input_groups)
        by_input.scatter_add_(1, self._columns.to(kernels.device), kernels)
        if self.grain == "column":
            return by_input
        sums = kernels.new_zeros(self.shape)
        return sums.index_add_(0, self.unit_of_output.to(kernels.device), by_input)

    def blocks_of(self, mask: Tensor) -> int:
        """Blocks that a (U, P) bool mask leaves after packing (design: one per Kout columns)."""
        return count_blocks(mask, self.grain, self.lanes, self.kout)

    def crossbars(self, mask: Tensor) -> int:
        """Compute crossbars that a (U, P) bool mask leaves after packing."""
        return self.blocks_of(mask) * self.crossbars_per_block
