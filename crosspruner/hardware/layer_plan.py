"""One layer of a plan: its tiling, what is pruned in it, and the crossbars that remain."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from crosspruner.hardware.auxiliary import buffer_crossbars, reduction_crossbars
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.fm_order import checked_order, fms_at_places, local_inputs
from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.layer_row import layer_row
from crosspruner.hardware.mapping import Tiling
from crosspruner.hardware.packing import Packing, checked_mask, count_blocks, output_table, pack
from crosspruner.hardware.utilisation import kept_kernels, weights_per_kernel


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """The crossbars of one layer.

    P input groups and Q output groups are counted per conv group (G of them).
    """

    geometry: LayerGeometry
    crossbar: Crossbar
    tiling: Tiling
    grain: str
    """crossbar or column."""
    prunable: bool = True
    """Whether pruning may touch the layer: included, not excluded. P = 1 is not looked at here."""
    mask: Tensor | None = None
    """bool, True = kept: (G * Q, P) at crossbar grain, (Cout, P) at column grain; None = dense."""
    input_order: Tensor | None = None
    """(G, Cin / G) int64: the FM, numbered within its conv group, at each place; None = as is."""
    output_order: Tensor | None = None
    """(G, Cout / G) int64: likewise for outputs."""
    weight_form: str = "plain"
    """How the layer comes by its weight, see `weight_form.weight_form`."""

    @property
    def name(self) -> str:
        """Dotted module name."""
        return self.geometry.name

    @property
    def kind(self) -> str:
        """conv or linear."""
        return self.geometry.kind

    @property
    def kin(self) -> int:
        """Input FMs per crossbar."""
        return self.tiling.kin

    @property
    def kout(self) -> int:
        """Output FMs per crossbar."""
        return self.tiling.kout

    @property
    def input_groups(self) -> int:
        """P, per conv group."""
        return self.tiling.input_groups

    @property
    def output_groups(self) -> int:
        """Q, per conv group."""
        return self.tiling.output_groups

    @property
    def conv_groups(self) -> int:
        """G."""
        return self.geometry.conv_groups

    @property
    def bundle(self) -> int:
        """Conv groups that share a crossbar block-diagonally; 1 = each has its own."""
        return self.tiling.bundle

    @property
    def lanes(self) -> int:
        """Runs of outputs within which columns may share crossbars: G / bundle * sections."""
        return self.conv_groups // self.bundle * self.geometry.sections

    @property
    def slices(self) -> int:
        """Copies of each block for other parts of the FM."""
        return self.tiling.slices

    @property
    def row_splits(self) -> int:
        """Crossbars per block and slice."""
        return self.tiling.row_splits

    @property
    def phases(self) -> int:
        """Phases per image."""
        return self.tiling.phases

    @property
    def mask_shape(self) -> tuple[int, int]:
        """(units, P) that a mask of this layer must have at its grain."""
        units = {
            "crossbar": self.conv_groups // self.bundle * self.output_groups,
            "column": self.geometry.out_channels,
        }
        return units[self.grain], self.input_groups

    @property
    def input_fms(self) -> Tensor:
        """(G, Cin / G) int64: the FM, numbered over all conv groups, at each place."""
        return fms_at_places(self.input_order, self.conv_groups, self.geometry.group_inputs)

    @property
    def output_fms(self) -> Tensor:
        """(G, Cout / G) int64: likewise for outputs."""
        return fms_at_places(self.output_order, self.conv_groups, self.geometry.group_outputs)

    @property
    def input_table(self) -> Tensor:
        """(G / bundle * P, bundle * kin) int64: FMs on the rows of each input group; -1 = none."""
        return output_table(self.input_fms, self.kin, self.bundle)

    @property
    def output_groups_table(self) -> Tensor:
        """(G / bundle * Q, bundle * kout) int64: the outputs of each output group; -1 = none."""
        return output_table(self.output_fms, self.kout, self.bundle, self.geometry.sections)

    @cached_property
    def packing(self) -> Packing:
        """The physical blocks: which input group drives each, what each column adds into."""
        return pack(
            *(self.mask, self.grain, self.input_groups, self.output_fms, self.kout),
            *(self.bundle, self.geometry.sections),
        )

    @cached_property
    def compute_crossbars(self) -> int:
        """Crossbars that multiply by weights: blocks * slices * row_splits."""
        if self.mask is None:
            return self.dense_compute_crossbars
        blocks = count_blocks(self.mask, self.grain, self.lanes, self.kout * self.bundle)
        return blocks * self.tiling.crossbars_per_block

    @property
    def dense_compute_crossbars(self) -> int:
        """The same before pruning: G / bundle * P * Q * slices * row_splits."""
        return (
            self.conv_groups // self.bundle * self.tiling.blocks * self.tiling.crossbars_per_block
        )

    @cached_property
    def reduction_crossbars(self) -> int:
        """Crossbars that add partial outputs, at the pruned fan-in."""
        return reduction_crossbars(self.tiling, self.crossbar, self.fan_in)

    @property
    def buffer_crossbars(self) -> int:
        """Crossbars that hold earlier input rows; pruning leaves them."""
        return buffer_crossbars(self.geometry, self.crossbar, self.tiling.mapping)

    @property
    def total_crossbars(self) -> int:
        """Compute, reduction and buffer crossbars."""
        return self.compute_crossbars + self.reduction_crossbars + self.buffer_crossbars

    @property
    def dense(self) -> "LayerPlan":
        """The layer before pruning, in the original order of FMs."""
        return replace(self, mask=None, input_order=None, output_order=None)

    @property
    def fan_in(self) -> Tensor:
        """(G / bundle * Q,) int64: input groups that an output group adds up.

        Its outputs are added side by side, so the one with the largest fan-in decides.
        """
        groups = self.conv_groups // self.bundle * self.output_groups
        if self.mask is None:
            return torch.full((groups,), self.input_groups)
        if self.grain == "crossbar":
            return self.mask.sum(1)
        each = torch.cat([self.mask.sum(1), torch.zeros(1, dtype=torch.int64)])
        return each[self.output_groups_table].amax(1)

    @property
    def weights(self) -> int:
        """Weights of the dense layer, biases aside."""
        kernel = self.geometry.kernel[0] * self.geometry.kernel[1]
        return self.geometry.out_channels * self.geometry.group_inputs * kernel

    @property
    def weights_kept(self) -> float:
        """Fraction of the weights that is not pruned, 0-1."""
        return self._kept_kernels / (self.geometry.out_channels * self.geometry.group_inputs)

    @cached_property
    def _kept_kernels(self) -> int:
        return kept_kernels(self.geometry, self.tiling, self.mask, self.grain)

    @property
    def kept(self) -> Tensor:
        """(Cout, Cin / G) bool: pairs of an output and an input FM whose kernel is kept."""
        geometry, packing = self.geometry, self.packing
        outs = packing.block_outputs[:, :, None]  # -1 lands in the spare last row
        fms = local_inputs(geometry, self.input_table[packing.block_input][:, None, :], outs)
        kept = torch.zeros(geometry.out_channels + 1, geometry.group_inputs + 1, dtype=torch.bool)
        kept[outs, fms] = True
        return kept[:-1, :-1]

    @property
    def cells_used(self) -> int:
        """Cells that hold a weight, copies included, those under zero padding left out."""
        each = weights_per_kernel(self.geometry, self.tiling.mapping)
        return self._kept_kernels * each * self.crossbar.cells_per_weight

    @property
    def cells_occupied(self) -> int:
        """All cells of the layer's compute crossbars."""
        return self.compute_crossbars * self.crossbar.rows * self.crossbar.cols

    @property
    def utilisation(self) -> float:
        """cells_used / cells_occupied, 0-1."""
        return self.cells_used / max(self.cells_occupied, 1)

    def pruned(
        self,
        mask: Tensor | None,
        grain: str,
        input_order: Tensor | None = None,
        output_order: Tensor | None = None,
    ) -> "LayerPlan":
        """The layer with another mask and other orders; None keeps what it has.

        Raises:
            PlanError: the mask or an order does not fit the layer.
        """
        grain = self.grain if mask is None and self.mask is not None else grain
        layer = replace(self, grain=grain)
        if mask is not None:
            layer = replace(layer, mask=checked_mask(self.name, mask, layer.mask_shape, grain))
        groups, geometry = self.conv_groups, self.geometry
        if input_order is not None:
            order = checked_order(self.name, "input", input_order, groups, geometry.group_inputs)
            layer = replace(layer, input_order=order)
        if output_order is not None:
            order = checked_order(self.name, "output", output_order, groups, geometry.group_outputs)
            layer = replace(layer, output_order=order)
        return layer

    def row(self) -> dict[str, Any]:
        """One flat row for tables and CSV, see `layer_row`."""
        return layer_row(self)
