"""Moments of a layer's inputs: all that masks, losses and refits of that layer need to know.

One streaming pass takes in the layer's input patches x~ (of the pruned network) and its outputs y
(of the dense network, without bias) and sums x~ x~', x~ y', y^2, x~ and y in float64. Memory does
not grow with the number of images, and sums of several processes add up. Products are taken in the
inputs' own precision, about a fixed point near the mean: a mean far above the variation would cost
the variation its digits.

Rows stand in the order of the input groups: input FMs in the layer's order, Kin at a time, the last
group padded with dead rows, so that every group has w = Kin * kernel positions of them. A matrix
over the byte limit is cut into runs of input groups without correlation between runs. Convolution
groups and runs together are called bands: B = G * runs matrices of d rows each.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.errors import DataError
from crosspruner.hardware.matrix import matrix_shape, operation_of, padded_maps, window_of
from crosspruner.pruning.targets import Targets
from crosspruner.sparsity import GroupLayout

MAX_BYTES = 2**30
"""Largest second moment kept whole: 11,585 inputs in float64."""

# Patches unfolded at once (float32: 128 MB).
_CHUNK_ENTRIES = 2**25


@dataclass(frozen=True)
class Moments:
    """Averages over the samples of one layer; float64."""

    second: Tensor
    """(B, d, d) E[x~ x~'] of each band."""
    cross: Tensor
    """(B, d, Cout / G) E[x~ y'] with the outputs of the band's convolution group."""
    energy: Tensor
    """(G, Cout / G) E[y^2]."""
    mean_in: Tensor
    """(B, d) E[x~]."""
    mean_out: Tensor
    """(G, Cout / G) E[y]."""
    samples: int
    """Patches that were averaged."""
    layout: GroupLayout

    @property
    def runs(self) -> int:
        """Runs of input groups in each convolution group; 1 = nothing was cut."""
        return self.second.shape[0] // self.layout.conv_groups

    @property
    def width(self) -> int:
        """w: rows of one input group."""
        groups = -(-self.layout.input_groups // self.runs)
        return self.second.shape[1] // groups

    def centred(self) -> "Moments":
        """The moments about the mean: those of a layer whose outputs are shifted for free.

        A bias, or a batch norm that follows, takes up any constant error.
        """
        into = self.mean_in.unsqueeze(2)
        per_band = self.mean_out.repeat_interleave(self.runs, 0).unsqueeze(1)
        return replace(
            self,
            second=self.second - into @ into.mT,
            cross=self.cross - into * per_band,
            energy=(self.energy - self.mean_out.square()).clamp(min=0),
        )

    def place(self, weight: Tensor) -> Tensor:
        """A weight (Cout, fan_in, ...) as (B, d, Cout / G) float64 in the order of the rows."""
        layout = self.layout
        kernels = (
            weight.detach().to(self.second).reshape(layout.conv_groups, -1, *_fm_shape(weight))
        )
        placed = _place(kernels, layout, 2, self.runs * -(-layout.input_groups // self.runs))
        bands = placed.reshape(layout.conv_groups, placed.shape[1], self.runs, -1)
        return bands.permute(0, 2, 3, 1).flatten(0, 1)

    def unplace(self, placed: Tensor, weight: Tensor) -> Tensor:
        """Undo `place`: (B, d, Cout / G) into the shape and dtype of `weight`."""
        layout = self.layout
        fan_in, positions = _fm_shape(weight)
        kernels = placed.view(layout.conv_groups, self.runs, placed.shape[1], -1)
        kernels = kernels.permute(0, 3, 1, 2).reshape(layout.conv_groups, placed.shape[2], -1)
        kernels = kernels.unflatten(2, (-1, positions))[:, :, :fan_in]
        if layout.input_order is not None:
            order = layout.input_order.to(placed.device)[:, None, :, None].expand_as(kernels)
            kernels = torch.empty_like(kernels).scatter_(2, order, kernels)
        return kernels.reshape(weight.shape).to(weight.dtype)

    def kernel_energy(self, weight: Tensor) -> Tensor:
        """Energy that each kernel puts into its output: w' M w of one FM's rows.

        Args:
            weight: (Cout, fan_in, ...).

        Returns:
            (Cout, fan_in) float64, by FM, not by place.
        """
        layout = self.layout
        fan_in, positions = _fm_shape(weight)
        placed = self.place(weight).unflatten(1, (-1, positions))  # (B, FMs, k, O)
        fms = torch.arange(placed.shape[1], device=placed.device)
        own = self.second.view(len(placed), len(fms), positions, len(fms), positions)
        own = own[:, fms, :, fms]  # (FMs, B, k, k)
        energy = ((own @ placed.transpose(0, 1)) * placed.transpose(0, 1)).sum(2)  # (FMs, B, O)
        energy = energy.unflatten(1, (layout.conv_groups, self.runs)).permute(1, 3, 2, 0)
        energy = energy.flatten(2)[:, :, :fan_in]  # (G, O, FMs in their places)
        if layout.input_order is not None:
            order = layout.input_order.to(energy.device).unsqueeze(1).expand_as(energy)
            energy = torch.empty_like(energy).scatter_(2, order, energy)
        return energy.flatten(0, 1)

    def importance(self, weight: Tensor, weights: Tensor | None = None) -> Tensor:
        """Energy of each input FM at the outputs: the diagonal of the Gram matrix at Kin = 1.

        Args:
            weight: (Cout, fan_in, ...).
            weights: (Cout,) what a squared error of each output weighs; None = all alike.

        Returns:
            (G, fan_in) float64, by FM, not by place.

        Source: Liang et al. 2018 order FMs by importance; this measure is our reading.
        """
        energy = self.kernel_energy(weight)
        if weights is not None:
            energy = energy * weights.to(energy).unsqueeze(1)
        return energy.view(self.layout.conv_groups, -1, energy.shape[1]).sum(1)

    def reordered(self, order: Tensor) -> "Moments":
        """The same moments with the input FMs in another order; only of uncut moments.

        Args:
            order: (G, fan_in) permutation, place -> FM; the present layout has none.
        """
        assert self.runs == 1
        assert self.layout.input_order is None
        layout = replace(self.layout, input_order=order)
        positions = self.width // layout.kin
        places = self.second.shape[1] // positions
        spare = torch.arange(layout.fan_in, places).expand(layout.conv_groups, -1)
        fms = torch.cat([order, spare], 1).to(self.second.device)
        rows = (fms.unsqueeze(2) * positions + torch.arange(positions).to(fms)).flatten(1)
        band = torch.arange(len(rows)).to(fms).unsqueeze(1)
        return replace(
            self,
            second=self.second[band.unsqueeze(2), rows.unsqueeze(2), rows.unsqueeze(1)],
            cross=self.cross[band, rows],
            mean_in=self.mean_in[band, rows],
            layout=layout,
        )


class MomentSums:
    """The running sums of one layer.

    Args:
        module: a layer, one of `matrix.LAYERS`.
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
        new = torch.zeros(0, dtype=torch.float64, device=next(module.parameters()).device).new_zeros
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
        entries = self.placed_groups * self.layout.kin * self.layout.conv_groups
        entries *= targets.size[0] * targets.size[1] * (self.width // self.layout.kin)
        chunk = max(1, _CHUNK_ENTRIES // max(1, entries))
        positions = targets.positions.to(inputs.device)
        for x, y in zip(inputs.split(chunk), targets.values.split(chunk), strict=True):
            self._add(x, y, positions)

    def _add(self, x: Tensor, y: Tensor, positions: Tensor) -> None:
        layout = self.layout
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(dtype), y.to(dtype)
        if self.point is None:
            self.point = x.mean((0, 2, 3), keepdim=True), y.mean((0, 2), keepdim=True)
        x, y = x - self.point[0], y - self.point[1]
        x = x.reshape(len(x), layout.conv_groups, layout.fan_in, *x.shape[2:])
        x = _place(x.transpose(0, 1), layout, 2, self.placed_groups).transpose(0, 1).flatten(1, 2)
        if operation_of(self.module) == "linear":
            x = x.flatten(2)
        else:
            kernel, stride, dilation = window_of(self.module)
            x = F.unfold(x, kernel, dilation, 0, stride)
        if len(positions) < x.shape[2]:
            x = x[:, :, positions]
        bands = len(self.sums["second"])
        x = x.unflatten(1, (bands, -1)).permute(1, 2, 0, 3).flatten(2)  # (B, d, n)
        y = y.unflatten(1, (layout.conv_groups, -1)).permute(1, 2, 0, 3).flatten(2)
        per_band = y.repeat_interleave(self.runs, 0)
        self.sums["second"] += x @ x.mT
        self.sums["cross"] += x @ per_band.mT
        self.sums["energy"] += y.double().square().sum(2)
        self.sums["mean_in"] += x.sum(2, dtype=torch.float64)
        self.sums["mean_out"] += y.sum(2, dtype=torch.float64)
        self.sums["samples"] += x.shape[2]

    def merge(self, other: "MomentSums") -> None:
        """Add the sums of another process or another part of the data."""
        if other.point is None:
            return
        if self.point is None:
            self.point = other.point
        for name, value in other._about(self.point).items():
            self.sums[name] += value

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
        return Moments(**means, samples=samples, layout=self.layout)

    def _about(self, point: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The sums about another point, in float64; all but the count are new tensors."""
        assert self.point is not None
        own, n = self.sums, self.sums["samples"]
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
            "second": own["second"].baddbmm(left, torch.stack([own["mean_in"], x], 1)),
            "cross": own["cross"].baddbmm(left, torch.stack([sum_out, bands], 1)),
            "energy": own["energy"] + y * (2 * own["mean_out"] + n * y),
            "mean_in": sum_in,
            "mean_out": own["mean_out"] + n * y,
            "samples": n,
        }

    def _rows_of(self, fms: Tensor) -> Tensor:
        """One value per input FM, (1, Cin, 1, 1), for each of the rows (B, d)."""
        fms = fms.view(self.layout.conv_groups, -1, 1)
        placed = _place(fms, self.layout, 1, self.placed_groups)
        rows = placed.expand(-1, -1, self.width // self.layout.kin)
        return rows.reshape(len(self.sums["second"]), -1)


def _fm_shape(weight: Tensor) -> tuple[int, int]:
    """Input FMs of one convolution group, kernel positions."""
    return weight.shape[1], weight[0, 0].numel()


def _place(values: Tensor, layout: GroupLayout, dim: int, groups: int) -> Tensor:
    """Input FMs along `dim` of (G, ...) in the layout's order, zero-padded to whole groups."""
    if layout.input_order is not None:
        shape = [1] * values.dim()
        shape[0], shape[dim] = layout.input_order.shape
        order = layout.input_order.to(values.device).view(shape).expand_as(values)
        values = torch.gather(values, dim, order)
    spare = groups * layout.kin - layout.fan_in
    if not spare:
        return values
    return torch.cat(
        [values, values.new_zeros(*values.shape[:dim], spare, *values.shape[dim + 1 :])], dim
    )
