"""The running sums of a layer's moments: one pass over its inputs and the dense outputs.

Memory does not grow with the number of images, and sums of several processes add up. Products are
taken in the inputs' own precision, about a fixed point near the mean: a mean far above the
variation would cost the variation its digits. The sums themselves are float64. Few patches are
kept instead of their second moment, as long as they take less room; where all positions of a
kernel count, many need not be made at all (`lag_sums`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.errors import DataError
from crosspruner.hardware.layer_modules import maps_and_padding, matrix_shape, pixels_read
from crosspruner.pruning.kernel_axes import Axis, kernel_axes
from crosspruner.pruning.lag_sums import LagSums
from crosspruner.pruning.moments import Moments, place_fms
from crosspruner.pruning.symmetric import add_lower, mirror
from crosspruner.pruning.targets import Targets
from crosspruner.sparsity import GroupLayout

MAX_BYTES = 2**30
"""Largest second moment kept whole: 11,585 inputs in float64."""

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
        self.bands = bands = layout.conv_groups * self.runs
        self.rows = rows = self.placed_groups // self.runs * width
        outputs = layout.outputs_per_conv_group
        self.point: tuple[Tensor, Tensor] | None = None
        """Mean of each input FM (1, Cin, 1, 1) and output FM (1, Cout, 1) over the first images:
        the sums are about it."""
        self.patches: list[Tensor] | None = []
        """(n, d) parts of the patches seen, about the point; None = they are too many."""
        self.second: Tensor | None = None
        """(B, d, d) the sum of the products of those that were too many; the tiles above the
        diagonal are out of date."""
        self.lags: dict[tuple[Axis, Axis], LagSums] = {}
        """Of patches at all positions, which need not be made: the sums of their products by how
        the kernel moves over the maps."""
        new = torch.zeros(0, dtype=torch.float64, device=next(module.parameters()).device).new_zeros
        self.sums: dict[str, Tensor] = {
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
        maps, padding = maps_and_padding(module, inputs, targets.size)
        axes = kernel_axes(module, maps, padding, targets)
        entries = self.bands * self.rows * len(targets.positions)
        chunk = max(1, _CHUNK_ENTRIES // max(1, entries))
        for x, y in zip(maps.split(chunk), targets.values.split(chunk), strict=True):
            dtype = torch.promote_types(x.dtype, torch.float32)
            x, y = x.to(dtype), y.to(dtype)
            if self.point is None:
                self.point = x.mean((0, 2, 3), keepdim=True), y.mean((0, 2), keepdim=True)
            self.sums["samples"] += len(y) * y.shape[2]
            y = (y - self.point[1]).unflatten(1, (self.layout.conv_groups, -1)).permute(1, 2, 0, 3)
            norm = torch.linalg.vector_norm(y.flatten(2), dim=2, dtype=torch.float64)
            self.sums["energy"] += norm.square()
            self.sums["mean_out"] += y.sum((2, 3))  # in the precision of the products
            y = y.repeat_interleave(self.runs, 0)
            if self._few() or axes is None or not LagSums.serve(*axes):
                self._add_patches(x, y, padding, targets)
            else:
                self._add_lags(x, y.unflatten(3, targets.size), *axes)

    def _add_patches(
        self, x: Tensor, y: Tensor, padding: tuple[int, int, int, int], targets: Targets
    ) -> None:
        """Take in maps x (n, Cin, H, W) and outputs y (B, outputs, n, positions) patch by patch."""
        assert self.point is not None
        x = F.pad(x, padding)
        read = pixels_read(self.module, targets.positions, targets.size[1], x.shape[3]).to(x.device)
        # The pixels under each kernel place and position: (images, Cin, kernel, positions).
        x = x.flatten(2).gather(2, read.flatten().expand(*x.shape[:2], -1))
        x = self._by_band(x.unflatten(2, read.shape) - self.point[0])
        x = x.transpose(2, 3).reshape(self.bands, self.rows, -1)  # (B, d, n)
        self.sums["cross"] += x @ y.flatten(2).mT
        self.sums["mean_in"] += x.sum(2)
        if self.patches is not None:
            self.patches.append(x[0].mT)
        else:
            add_lower(self._second(), x)

    def _add_lags(self, x: Tensor, y: Tensor, down: Axis, across: Axis) -> None:
        """The same for outputs y (B, outputs, n, H', W') at all positions, without patches."""
        assert self.point is not None
        if (down, across) not in self.lags:
            point = self._by_band(self.point[0]).flatten(1)
            self.lags[down, across] = LagSums(down, across, point)
        cross, mean = self.lags[down, across].add(self._by_band(x - self.point[0]), y)
        self.sums["cross"] += cross
        self.sums["mean_in"] += mean

    def _by_band(self, x: Tensor) -> Tensor:
        """Maps (n, Cin, ...) as (B, FMs of a band in the layout's order, n, ...)."""
        layout = self.layout
        x = x.transpose(0, 1).unflatten(0, (layout.conv_groups, layout.fan_in))
        x = place_fms(x, layout, 1, self.placed_groups)
        return x.unflatten(1, (self.runs, -1)).flatten(0, 1)

    def _few(self) -> bool:
        """Whether patches are kept, those that "samples" counts included; else never any more.

        Twice as many rows as patches: below that they are no shorter to reckon with.
        """
        few = self.bands == 1 and 2 * int(self.sums["samples"]) < self.rows
        if self.patches is not None and not few:
            self._products_only()
        return self.patches is not None

    def _products_only(self) -> None:
        """Turn the patches kept so far, (n, d) each, into the sum of their products."""
        known, self.patches = self.patches, None
        if known:
            add_lower(self._second(), _as_columns(known))

    def _second(self) -> Tensor:
        """The sum of products, in place, made where it is not there yet."""
        if self.second is None:
            self.second = self.sums["cross"].new_zeros(self.bands, self.rows, self.rows)
        return self.second

    def merge(self, other: "MomentSums") -> None:
        """Add the sums of another process or another part of the data."""
        if other.point is None:
            return
        if self.point is None:
            self.point = other.point
        for name, value in other._about(self.point).items():
            self.sums[name] += value
        kept = other._patches_about(self.point)
        if kept is not None and self._few():
            assert self.patches is not None
            self.patches += kept
            return
        self._products_only()
        second = self._second()
        second += other._second_about(self.point)

    def average(self) -> Moments:
        """The moments of what was seen.

        Raises:
            DataError: nothing was seen, or the layer met NaN or Inf.
        """
        samples = int(self.sums["samples"])
        if not samples:
            raise DataError(f"layer {self.layout.name} was not run by any calibration batch")
        assert self.point is not None
        origin = torch.zeros_like(self.point[0]), torch.zeros_like(self.point[1])
        raw, kept = self._about(origin), self._patches_about(origin)
        patches = None if kept is None else torch.cat(kept)
        products = self._second_about(origin) if patches is None else None
        known = [*raw.values(), products if patches is None else patches.square()]
        # Sums, since what they hold in memory is less; nothing finite comes near their range.
        if not all(bool(value.sum().isfinite()) for value in known if value is not None):
            raise DataError(
                f"layer {self.layout.name} meets NaN or Inf on the calibration images: check the "
                "weights and the scale of the images"
            )
        if products is not None:
            products /= samples
        means = {k: v.div_(samples) for k, v in raw.items() if k != "samples"}
        return Moments(products, **means, samples=samples, layout=self.layout, patches=patches)

    def _patches_about(self, point: tuple[Tensor, Tensor]) -> list[Tensor] | None:
        """The patches about another point, in float64."""
        assert self.point is not None
        if self.patches is None:
            return None
        shift = self._rows_of(self.point[0].double() - point[0].double())
        return [part.double() + shift for part in self.patches]

    def _about(self, point: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The sums about another point, in float64; all but the count are new tensors."""
        own, n = self.sums, self.sums["samples"]
        x, y = self._shift(point)
        bands = y.repeat_interleave(self.runs, 0)
        sum_out = own["mean_out"].repeat_interleave(self.runs, 0)
        sum_in = own["mean_in"] + n * x
        # sum of (u + x)(v + y)' = sum of u v' + x (sum of v)' + (sum of u + n x) y'
        left = torch.stack([x, sum_in], 2)
        return {
            "cross": own["cross"].baddbmm(left, torch.stack([sum_out, bands], 1)),
            "energy": own["energy"] + y * (2 * own["mean_out"] + n * y),
            "mean_in": sum_in,
            "mean_out": own["mean_out"] + n * y,
            "samples": n,
        }

    def _second_about(self, point: tuple[Tensor, Tensor]) -> Tensor:
        """(B, d, d) the products about another point, a new tensor."""
        x, _ = self._shift(point)
        sum_in = self.sums["mean_in"]
        left = torch.stack([x, sum_in + self.sums["samples"] * x], 2)
        right = torch.stack([sum_in, x], 1)
        sums = [lags.second() for lags in self.lags.values()]
        if self.patches is not None:
            sums.append(sum_in.new_zeros(self.bands, self.rows, self.rows))
            if self.patches:
                add_lower(sums[-1], _as_columns(self.patches))
            mirror(sums[-1])
        elif self.second is not None:
            mirror(self.second)
            sums.append(self.second.clone())
        total = sums.pop()
        for more in sums:
            total += more
        return total.baddbmm_(left, right)

    def _shift(self, point: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """From the other point to this one: of the rows (B, d), of the outputs (G, Cout / G)."""
        assert self.point is not None
        pairs = zip(self.point, point, strict=True)
        x, y = (mine.double() - other.double() for mine, other in pairs)
        return self._rows_of(x), y.view(self.layout.conv_groups, -1)

    def _rows_of(self, fms: Tensor) -> Tensor:
        """One value per input FM, (1, Cin, 1, 1), for each of the rows (B, d)."""
        placed = self._by_band(fms).flatten(2)
        return placed.expand(-1, -1, self.width // self.layout.kin).reshape(self.bands, -1)


def _as_columns(patches: list[Tensor]) -> Tensor:
    """Patches (n, d) as `add_lower` takes them, (1, d, n)."""
    return torch.cat(patches).mT.unsqueeze(0)
