"""How a layer is cut into crossbars: the folded, semi-folded and unfolded mapping.

The unrolled kernel matrix of a layer has one row per (input FM, kernel row, kernel column) and one
column per output FM. A crossbar takes `kin` whole FMs of rows and `kout` outputs of columns, and

* folded: holds the kernel once;
* semifolded: holds a banded copy of it for `w` neighbouring output columns;
* unfolded: holds a banded copy of it for a patch of `h` x `w` outputs.

Cuts are full tiles, then the rest: 513 inputs on 256 rows are 256 + 256 + 1.

The matrices of a grouped convolution stand on crossbars of their own (`grouped="apart"`), or
several of them on the diagonal of one (`grouped="block_diagonal"`): each conv group of the bundle
then has rows and columns of its own there, and the cells off the diagonal hold nothing.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosspruner.errors import MappingError
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.geometry import LayerGeometry as LayerGeometry
from crosspruner.hardware.mapping_spec import MappingSpec as MappingSpec


def ceil_div(a: int, b: int) -> int:
    """Rounds a / b up, for whole numbers."""
    return -(-a // b)


@dataclass(frozen=True)
class Tiling:
    """How one layer is cut into crossbars. Group counts are per conv group."""

    kin: int
    """Input FMs per crossbar; the last input group may have fewer."""
    kout: int
    """Output FMs per crossbar; the last output group may have fewer."""
    window: tuple[int, int]
    """Outputs (h, w) that one crossbar computes per FM and phase; (1, 1) if folded."""
    input_groups: int
    """P."""
    output_groups: int
    """Q."""
    slices: int
    """Copies of each (g, q) block, for other parts of the FM."""
    row_splits: int
    """Crossbars that one block takes per slice: kh with kernel_rows=one, times the pieces of an
    FM whose rows exceed the crossbar."""
    phases: int
    """Crossbar uses per image in sequence."""
    fm_rows: int
    """Rows that one input FM takes (one kernel row of it with kernel_rows=one)."""
    mapping: str
    """folded, semifolded or unfolded."""
    kernel_rows: str = "all"
    bundle: int = 1
    """Conv groups that share a crossbar block-diagonally; a divisor of the conv groups."""

    @property
    def blocks(self) -> int:
        """Blocks of one conv group, dense: P * Q."""
        return self.input_groups * self.output_groups

    @property
    def crossbars_per_block(self) -> int:
        """Crossbars that one (g, q) block stands for: slices * row_splits."""
        return self.slices * self.row_splits


def with_tokens(geometry: LayerGeometry, spec: MappingSpec) -> LayerGeometry:
    """A linear layer over a sequence, as rows of `spec.tokens` positions.

    Positions of a sequence are what a linear layer folds over: one per phase. With w at once it is
    a 1x1 convolution over rows of w, whose last row may be filled up with zeros: the weights are
    there w times, and 1 / w of the phases are left.

    Args:
        geometry: a layer's; anything but a linear layer of several positions is returned as it is.
        spec: the mapping; folded keeps one copy and so one position.
    """
    at_once = min(spec.tokens, geometry.calls)
    if geometry.kind != "linear" or spec.name == "folded" or at_once == 1:
        return geometry
    row = (1, at_once)
    calls = ceil_div(geometry.calls, at_once)
    return replace(geometry, in_size=row, out_size=row, calls=calls)


def choose_tiling(geometry: LayerGeometry, crossbar: Crossbar, spec: str | MappingSpec) -> Tiling:
    """Cuts one layer into the fewest compute crossbars.

    The window (h, w) is searched; for each, Kin and Kout are the given ones or the largest that
    fit. Ties go to fewer slices, then to larger Kin, larger Kout, and the smaller window. Where not
    even one output position of one FM fits into the rows, the FM is split over `row_splits`
    crossbars and Kin is 1.

    Args:
        geometry: the layer's shapes.
        crossbar: the array.
        spec: the mapping, by name or with fixed choices.

    Returns:
        The tiling.

    Raises:
        MappingError: a given kin or kout does not fit the crossbar.

    Source: folded and unfolded are im2col and full unrolling; semi-folded is Deng et al., SemiMap,
    TCAD 2018, as read in our design (rows and columns per window, the search).
    """
    spec = MappingSpec.of(spec)
    given_kin, given_kout = spec.given(geometry)
    h, w = _windows(geometry, crossbar, spec)
    fm_rows, parts = _fm_rows(geometry, spec, h, w)
    slices = _ceil(geometry.out_size[0], h) * _ceil(geometry.out_size[1], w)
    if spec.name == "folded":
        slices = torch.ones_like(h)
    elif spec.name == "semifolded":
        slices = _ceil(geometry.out_size[1], w)

    section = geometry.group_outputs // geometry.sections
    split = int(fm_rows.min()) > crossbar.rows
    kin = (crossbar.rows // fm_rows).clamp(1, geometry.group_inputs)
    if given_kin is not None:
        kin = torch.full_like(kin, given_kin)
    kout = (crossbar.weight_columns // (h * w)).clamp(max=section)
    if given_kout is not None:
        kout = torch.full_like(kout, given_kout)
    rows_fit = (kin == 1) if split else (kin * fm_rows <= crossbar.rows)
    cols_fit = kout * h * w <= crossbar.weight_columns
    fit = rows_fit & cols_fit
    if not bool(fit.any()):
        _raise_unfit(geometry, crossbar, spec, int(fm_rows.min()))

    row_splits = parts * _ceil(fm_rows, crossbar.rows)
    input_groups = _ceil(geometry.group_inputs, kin)
    output_groups = geometry.sections * _ceil(section, kout)
    bundle = torch.ones_like(kin)
    if spec.grouped == "block_diagonal":
        side_by_side = torch.minimum(
            crossbar.rows // (kin * fm_rows), crossbar.weight_columns // (kout * h * w)
        )
        bundle = _largest_divisor(geometry.conv_groups, side_by_side)
    crossbars = input_groups * output_groups * slices * row_splits
    crossbars = crossbars * (geometry.conv_groups // bundle)
    order = torch.stack([crossbars, slices, -kin, -kout], 1)[fit].tolist()
    best = int(fit.nonzero()[min(range(len(order)), key=order.__getitem__)])
    return Tiling(
        kin=int(kin[best]),
        kout=int(kout[best]),
        window=(int(h[best]), int(w[best])),
        input_groups=int(input_groups[best]),
        output_groups=int(output_groups[best]),
        slices=int(slices[best]),
        row_splits=int(row_splits[best]),
        phases=_phases(geometry, spec),
        fm_rows=int(fm_rows[best]),
        mapping=spec.name,
        kernel_rows=spec.kernel_rows if spec.name != "folded" else "all",
        bundle=int(bundle[best]),
    )


def _largest_divisor(whole: int, most: Tensor) -> Tensor:
    """The largest divisor of `whole` up to each of `most`, at least 1: all bundles are equal."""
    divisors = torch.tensor([n for n in range(1, whole + 1) if whole % n == 0])
    return divisors[torch.searchsorted(divisors, most.clamp(1, whole), right=True) - 1]


def _windows(
    geometry: LayerGeometry, crossbar: Crossbar, spec: MappingSpec
) -> tuple[Tensor, Tensor]:
    """All windows (h, w) whose columns fit for one output FM, as two vectors."""
    most = crossbar.weight_columns
    high = min(geometry.out_size[0], most) if spec.name == "unfolded" else 1
    wide = min(geometry.out_size[1], most) if spec.name != "folded" else 1
    h = torch.arange(1, max(high, 1) + 1)
    w = torch.arange(1, max(wide, 1) + 1)
    h, w = (grid.flatten() for grid in torch.meshgrid(h, w, indexing="ij"))
    fit = h * w <= most
    return h[fit], w[fit]


def _span(outputs: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """Input positions under `outputs` neighbouring outputs, gaps between them included."""
    return (outputs - 1) * stride + (kernel - 1) * dilation + 1


def _fm_rows(
    geometry: LayerGeometry, spec: MappingSpec, h: Tensor, w: Tensor
) -> tuple[Tensor, int]:
    """Rows that one FM takes under each window, and how many such parts an FM has."""
    (kh, kw), (high, wide) = geometry.kernel, geometry.in_size
    if spec.name == "folded":
        return torch.full_like(w, kh * kw), 1
    columns = _span(w, kw, geometry.stride[1], geometry.dilation[1]).clamp(max=wide)
    kernel_rows, parts = (kh, 1) if spec.kernel_rows == "all" else (1, kh)
    if spec.name == "semifolded":
        return kernel_rows * columns, parts
    patch = _span(h, kernel_rows, geometry.stride[0], geometry.dilation[0])
    return patch.clamp(max=high) * columns, parts


def _phases(geometry: LayerGeometry, spec: MappingSpec) -> int:
    """Folded: one per output position; semi-folded: one per output row; unfolded: one.

    Our reading of kernel_rows=one: the kh crossbars of an output row fire in kh successive phases,
    overlapped with those of the next rows, so that the phases per image stay the same.
    """
    high, wide = geometry.out_size
    once = {"folded": high * wide, "semifolded": high, "unfolded": 1}[spec.name]
    return once * geometry.calls


def _ceil(a: Tensor | int, b: Tensor | int) -> Tensor:
    return -(-a // b)  # type: ignore[return-value]


def _raise_unfit(
    geometry: LayerGeometry, crossbar: Crossbar, spec: MappingSpec, fm_rows: int
) -> None:
    most = {"kin": max(crossbar.rows // fm_rows, 1), "kout": crossbar.weight_columns}
    clipped = dict(zip(most, spec.given(geometry), strict=True))
    typed = {k: v for k, v in spec.typed(geometry).items() if v is not None}
    held = {"kin": geometry.group_inputs, "kout": geometry.group_outputs // geometry.sections}
    given = ", ".join(
        f"{k}={v}" + (f" ({held[k]} are all that the layer has)" if v > held[k] else "")
        for k, v in typed.items()
    )
    # Two that fit by themselves may not fit together: then both are to be looked at.
    over = [k for k in typed if (clipped[k] or 0) > most[k]] or list(typed)
    command = ",".join(f"{k}:{most[k]}" for k in over)
    python = ", ".join(f'"{k}": {most[k]}' for k in over)
    raise MappingError(
        f"{geometry.name}: {given} does not fit a {crossbar} crossbar "
        f"(an input FM takes {fm_rows} rows or more, an output FM "
        f"{crossbar.cells_per_weight} columns or more). Here kin may be at most {most['kin']} and "
        f"kout at most {most['kout']}: give less, or less for this layer alone (mapping.layers="
        f"{{{geometry.name}:{{{command}}}}}; in Python MappingSpec(layers="
        f'{{"{geometry.name}": {{{python}}}}})), or leave them out to have them chosen.'
    )
