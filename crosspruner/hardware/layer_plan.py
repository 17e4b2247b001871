"""One layer of a plan: its tiling, what is pruned in it, and the crossbars that remain."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from crosspruner.errors import PlanError
from crosspruner.hardware.auxiliary import buffer_crossbars, reduction_crossbars
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.mapping import LayerGeometry, Tiling, ceil_div
from crosspruner.hardware.packing import Packing, count_blocks, output_table, pack


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
        return _global_order(self.input_order, self.conv_groups, self.geometry.group_inputs)

    @property
    def output_fms(self) -> Tensor:
        """(G, Cout / G) int64: likewise for outputs."""
        return _global_order(self.output_order, self.conv_groups, self.geometry.group_outputs)

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
        return self._kept_pairs / (self.geometry.out_channels * self.geometry.group_inputs)

    @cached_property
    def _kept_pairs(self) -> int:
        """Pairs of an input and an output FM whose kernel is kept."""
        if self.mask is None:
            return self.geometry.out_channels * self.geometry.group_inputs
        fms = _group_sizes(self.geometry.group_inputs, self.kin)
        kept = self.mask.long() @ fms
        if self.grain == "crossbar":
            sections = self.geometry.sections
            outputs = _group_sizes(self.geometry.group_outputs // sections, self.kout) * self.bundle
            kept = kept * outputs.repeat(self.lanes)
        return int(kept.sum())

    @property
    def kept(self) -> Tensor:
        """(Cout, Cin / G) bool: pairs of an output and an input FM whose kernel is kept."""
        geometry, packing = self.geometry, self.packing
        outs = packing.block_outputs[:, :, None]  # -1 lands in the spare last row
        fms = self.local_inputs(self.input_table[packing.block_input][:, None, :], outs)
        kept = torch.zeros(geometry.out_channels + 1, geometry.group_inputs + 1, dtype=torch.bool)
        kept[outs, fms] = True
        return kept[:-1, :-1]

    def local_inputs(self, fms: Tensor, outs: Tensor) -> Tensor:
        """Which weight of its output the cell of an input and an output FM holds.

        Args:
            fms: int64, input FMs numbered over all conv groups; -1 = none.
            outs: int64, output FMs likewise; the two broadcast against each other.

        Returns:
            The input FM numbered within its conv group; Cin / G where the cell holds none: nothing
            there, or two conv groups of a bundle meet.
        """
        geometry = self.geometry
        none = geometry.group_inputs
        same = fms // none == outs // geometry.group_outputs
        return torch.where((fms >= 0) & (outs >= 0) & same, fms % none, none)

    @property
    def cells_used(self) -> int:
        """Cells that hold a weight, copies included, those under zero padding left out."""
        geometry = self.geometry
        (kh, kw), copies = geometry.kernel, 0
        if self.tiling.mapping == "folded":
            copies = kh * kw
        elif self.tiling.mapping == "semifolded":
            copies = kh * _taps_inside(geometry, 1)
        else:
            copies = _taps_inside(geometry, 0) * _taps_inside(geometry, 1)
        return self._kept_pairs * copies * self.crossbar.cells_per_weight

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
            mask = mask.detach().cpu()
            if tuple(mask.shape) != layer.mask_shape:
                raise PlanError(
                    f"{self.name}: the mask has shape {tuple(mask.shape)}; at grain={grain} it "
                    f"must be {layer.mask_shape}."
                )
            if mask.dtype != torch.bool:
                if not bool(((mask == 0) | (mask == 1)).all()):
                    raise PlanError(f"{self.name}: a mask holds True and False, or 0 and 1.")
                mask = mask.bool()
            layer = replace(layer, mask=mask.clone())
        groups = self.conv_groups
        if input_order is not None:
            order = checked_order(
                self.name, "input", input_order, groups, self.geometry.group_inputs
            )
            layer = replace(layer, input_order=order)
        if output_order is not None:
            order = checked_order(
                self.name, "output", output_order, groups, self.geometry.group_outputs
            )
            layer = replace(layer, output_order=order)
        return layer

    def row(self) -> dict[str, Any]:
        """One flat row for tables and CSV; fractions (saved, weights_kept, utilisation) are 0-1."""
        dense = self.dense
        geometry = self.geometry
        return {
            "layer": self.name,
            "kind": self.kind,
            "in_fms": geometry.in_channels,
            "out_fms": geometry.out_channels,
            "kernel": "x".join(map(str, geometry.kernel)),
            "conv_groups": self.conv_groups,
            "bundle": self.bundle,
            "sections": geometry.sections,
            "kin": self.kin,
            "kout": self.kout,
            "window": "x".join(map(str, self.tiling.window)),
            "input_groups": self.input_groups,
            "output_groups": self.output_groups,
            "slices": self.slices,
            "row_splits": self.row_splits,
            "prunable": self.prunable,
            "compute_dense": self.dense_compute_crossbars,
            "compute": self.compute_crossbars,
            "saved": 1 - self.compute_crossbars / self.dense_compute_crossbars,
            "reduction_dense": dense.reduction_crossbars,
            "reduction": self.reduction_crossbars,
            "buffer": self.buffer_crossbars,
            "phases": self.phases,
            "weights_kept": self.weights_kept,
            "cells_used": self.cells_used,
            "cells_occupied": self.cells_occupied,
            "utilisation": self.utilisation,
        }


def _taps_inside(geometry: LayerGeometry, axis: int) -> int:
    """(output, kernel) positions along one axis that read a real input, not zero padding."""
    outputs = torch.arange(geometry.out_size[axis]) * geometry.stride[axis]
    taps = torch.arange(geometry.kernel[axis]) * geometry.dilation[axis]
    place = outputs[:, None] + taps - geometry.padding[axis]
    return int(((place >= 0) & (place < geometry.in_size[axis])).sum())


def _group_sizes(fms: int, group: int) -> Tensor:
    """Sizes of full groups, then the rest: (ceil(fms / group),) int64."""
    sizes = torch.full((ceil_div(fms, group),), group)
    sizes[-1] = fms - group * (len(sizes) - 1)
    return sizes


def _global_order(order: Tensor | None, groups: int, fms: int) -> Tensor:
    first = torch.arange(groups)[:, None] * fms
    return first + (torch.arange(fms) if order is None else order)


def checked_order(name: str, side: str, order: Tensor, groups: int, fms: int) -> Tensor:
    """A copy of the order, which must be a permutation per conv group: (groups, fms)."""
    order = order.detach().cpu()
    if tuple(order.shape) != (groups, fms) or not bool(
        (order.sort(1).values == torch.arange(fms)).all()
    ):
        raise PlanError(
            f"{name}: the {side} order must be a permutation of 0..{fms - 1} for each of "
            f"{groups} conv groups, shape ({groups}, {fms}); its shape is {tuple(order.shape)}."
        )
    return order.long().clone()
