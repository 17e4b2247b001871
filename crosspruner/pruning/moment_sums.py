"""The running sums of a layer's moments: one pass over its inputs and the dense outputs.

Memory does not grow with the number of images, and sums of several processes add up. Products are
taken in the inputs' own precision, about a fixed point near the mean: a mean far above the
variation would cost the variation its digits. The sums themselves are float64. Few patches are
kept instead of their second moment, as long as they take less room.
"""

import torch
from torch import Tensor, nn

from crosspruner.errors import DataError
from crosspruner.hardware.layer_modules import matrix_shape, padded_maps, window_of
from crosspruner.pruning.moments import Moments, place_fms
from crosspruner.pruning.targets import Targets
from crosspruner.sparsity import GroupLayout

MAX_BYTES = 2**30
"""Largest second moment kept whole: 11,585 inputs in float64."""

# Rows of a second moment that are multiplied at once: few enough to leave out nearly half of the
# products, enough for fast ones.
_TILE = 512

# Numbers of patches that are made at once (float32: 128 MB).
_CHUNK_ENTRIES = 2**25


class MomentSums:
    """The running sums of one layer.

    Args:
        module: a layer, one of `layer_modules.LAYERS`.
        layout: its groups.
        max_bytes: a second moment over this size is cut into runs of input groups.
        positions: output positions drawn from each image, the same ones for all images of a batch;
            None takes all. Neighbouring patches overlap, so a part of them tells nearly all.
        generator: CPU generator of that draw; None: a new one with seed 0.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: GroupLayout,
        max_bytes: int = MAX_BYTES,
        positions: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.module = module
        self.layout = layout
        self.positions = positions
        self.generator = generator or torch.Generator().manual_seed(0)
        _, _, high, wide = matrix_shape(module)
        self.width = width = layout.kin * high * wide
        per_run = max(1, int((max_bytes / 8 / layout.conv_groups) ** 0.5) // width)
        self.runs = -(-layout.input_groups // per_run)
        self.placed_groups = self.runs * -(-layout.input_groups // self.runs)
        bands, rows = layout.conv_groups * self.runs, self.placed_groups // self.runs * width
        outputs = layout.outputs_per_conv_group
        self.point: tuple[Tensor, Tensor] | None = None
        """Mean of each input FM (1, Cin, 1, 1) and output FM (1, Cout, 1) over the first images:
        the sums are about it."""
        self.patches: list[Tensor] | None = []
        """(n, d) parts of the patches seen, about the point, which are not in "second" yet; None =
        they are too many."""
        new = torch.zeros(0, dtype=torch.float64, device=next(module.parameters()).device).new_zeros
        # Of "second" the tiles above the diagonal are out of date between `_mirror`s.
        self.sums: dict[str, Tensor] = {
            "second": new(bands, rows, rows),
            "cross": new(bands, rows, outputs),
            "energy": new(layout.conv_groups, outputs),
            "mean_in": new(bands, rows),
            "mean_out": new(layout.conv_groups, outputs),
            "samples": new(()),
        }

    @torch.no_grad()
    def update(self, inputs: Tensor, targets: Tensor | Targets) -> None:
        """Take in one batch.

        Args:
            inputs: the layer's input in its own shape, of the pruned network.
            targets: the layer's output on the same images, of the dense network: `Targets`, or the
                whole output without bias, of which `positions` are drawn here.
        """
        module = self.module
        if isinstance(targets, Tensor):
            targets = Targets.draw(module, targets, self.positions, self.generator, biased=False)
        inputs = padded_maps(module, inputs, targets.size)
        read = pixels_read(module, targets.positions, targets.size[1], inputs.shape[3])
        entries = self.placed_groups * self.layout.kin * self.layout.conv_groups * read.numel()
        chunk = max(1, _CHUNK_ENTRIES // max(1, entries))
        read = read.to(inputs.device)
        for x, y in zip(inputs.split(chunk), targets.values.split(chunk), strict=True):
            self._add(x, y, read)

    def _add(self, x: Tensor, y: Tensor, read: Tensor) -> None:
        layout = self.layout
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        if self.point is None:
            self.point = x.mean((0, 2, 3), keepdim=True), y.mean((0, 2), keepdim=True)
        x, y = x - self.point[0], y - self.point[1]
        x = x.reshape(len(x), layout.conv_groups, layout.fan_in, *x.shape[2:])
        x = place_fms(x.transpose(0, 1), layout, 2, self.placed_groups)
        x = x.transpose(0, 1).flatten(1, 2)
        # The pixels under each position and kernel place: (FMs, kernel, images, positions).
        x = x.flatten(2).gather(2, read.flatten().expand(*x.shape[:2], -1))
        x = x.unflatten(2, read.shape).permute(1, 2, 0, 3)
        x = x.reshape(len(self.sums["second"]), -1, x.shape[2] * x.shape[3])  # (B, d, n)
        y = y.unflatten(1, (layout.conv_groups, -1)).permute(1, 2, 0, 3).flatten(2)
        per_band = y.repeat_interleave(self.runs, 0)
        self.sums["cross"] += x @ per_band.mT
        self.sums["energy"] += y.double().square().sum(2)
        self.sums["mean_in"] += x.sum(2, dtype=torch.float64)
        self.sums["mean_out"] += y.sum(2, dtype=torch.float64)
        self.sums["samples"] += x.shape[2]
        if not self._keep([x[0].mT]):
            _add_lower(self.sums["second"], x)

    def _keep(self, patches: list[Tensor] | None) -> bool:
        """Keep patches (n, d) about the point as long as they are few; whether they were kept.

        Twice as many rows as patches: below that they are no shorter to reckon with.

        Args:
            patches: the new ones, which "samples" counts already; None: they are not known.
        """
        if self.patches is None:
            return False
        bands, rows, _ = self.sums["second"].shape
        if patches is not None and bands == 1 and 2 * int(self.sums["samples"]) < rows:
            self.patches += patches
            return True
        known, self.patches = self.patches, None
        if known:
            _add_lower(self.sums["second"], torch.cat(known).mT.unsqueeze(0))
        return False

    def merge(self, other: "MomentSums") -> None:
        """Add the sums of another process or another part of the data."""
        if other.point is None:
            return
        if self.point is None:
            self.point = other.point
        added = other._about(self.point)
        second = added.pop("second")
        for name, value in added.items():
            self.sums[name] += value
        if not self._keep(other._patches_about(self.point)):
            self.sums["second"] += second

    def average(self) -> Moments:
        """The moments of what was seen.

        Raises:
            DataError: nothing was seen, or the layer met NaN or Inf.
        """
        samples = int(self.sums["samples"])
        if not samples:
            raise DataError(f"layer {self.layout.name} was not run by any calibration batch")
        if not all(bool(value.isfinite().all()) for value in self.sums.values()):
            raise DataError(
                f"layer {self.layout.name} meets NaN or Inf on the calibration images: check the "
                "weights and the scale of the images"
            )
        assert self.point is not None
        origin = torch.zeros_like(self.point[0]), torch.zeros_like(self.point[1])
        raw = self._about(origin)
        means = {k: v.div_(samples) for k, v in raw.items() if k != "samples"}
        patches = self._patches_about(origin)
        return Moments(
            **means,
            samples=samples,
            layout=self.layout,
            patches=None if patches is None else torch.cat(patches),
        )

    def _patches_about(self, point: tuple[Tensor, Tensor]) -> list[Tensor] | None:
        """The patches about another point, in float64."""
        assert self.point is not None
        if self.patches is None:
            return None
        shift = self._rows_of(self.point[0].double() - point[0].double())
        return [part.double() + shift for part in self.patches]

    def _about(self, point: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The sums about another point, in float64; all but the count are new tensors."""
        assert self.point is not None
        own, n = self.sums, self.sums["samples"]
        second = self._second()
        pairs = zip(self.point, point, strict=True)
        x, y = (mine.double() - other.double() for mine, other in pairs)
        x = self._rows_of(x)  # (B, d)
        y = y.view(self.layout.conv_groups, -1)
        bands = y.repeat_interleave(self.runs, 0)
        sum_out = own["mean_out"].repeat_interleave(self.runs, 0)
        sum_in = own["mean_in"] + n * x
        # sum of (u + x)(v + y)' = sum of u v' + x (sum of v)' + (sum of u + n x) y'
        left = torch.stack([x, sum_in], 2)
        return {
            "second": second.baddbmm(left, torch.stack([own["mean_in"], x], 1)),
            "cross": own["cross"].baddbmm(left, torch.stack([sum_out, bands], 1)),
            "energy": own["energy"] + y * (2 * own["mean_out"] + n * y),
            "mean_in": sum_in,
            "mean_out": own["mean_out"] + n * y,
            "samples": n,
        }

    def _second(self) -> Tensor:
        """(B, d, d) the sum of all products about the point."""
        total = self.sums["second"]
        if self.patches:
            total = total.clone()
            _add_lower(total, torch.cat(self.patches).mT.unsqueeze(0))
        _mirror(total)
        return total

    def _rows_of(self, fms: Tensor) -> Tensor:
        """One value per input FM, (1, Cin, 1, 1), for each of the rows (B, d)."""
        fms = fms.view(self.layout.conv_groups, -1, 1)
        placed = place_fms(fms, self.layout, 1, self.placed_groups)
        rows = placed.expand(-1, -1, self.width // self.layout.kin)
        return rows.reshape(len(self.sums["second"]), -1)


def pixels_read(module: nn.Module, positions: Tensor, out_width: int, in_width: int) -> Tensor:
    """Which pixels of its padded, flattened input maps a layer reads at some output positions.

    Args:
        module: a layer, one of `layer_modules.LAYERS`.
        positions: (n,) int64, places in the flattened output maps.
        out_width, in_width: of the output maps and of the padded input maps, in pixels.

    Returns:
        (kernel places, n) int64.
    """
    (high, wide), (sh, sw), (dh, dw) = window_of(module)
    down = positions // out_width * sh + torch.arange(high).view(-1, 1, 1) * dh
    across = positions % out_width * sw + torch.arange(wide).view(-1, 1) * dw
    return (down * in_width + across).flatten(0, 1)


def _add_lower(total: Tensor, x: Tensor) -> None:
    """Add x x' of (B, d, n) to (B, d, d), but for tiles above the diagonal, see `_mirror`."""
    for first in range(0, x.shape[1], _TILE):
        end = first + _TILE
        total[:, first:end, :end] += x[:, first:end] @ x[:, :end].mT


def _mirror(total: Tensor) -> None:
    """Make the tiles above the diagonal those below it, in place."""
    for first in range(0, total.shape[1], _TILE):
        end = first + _TILE
        total[:, :first, first:end] = total[:, first:end, :first].mT
