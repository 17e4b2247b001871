"""Moments of a layer's inputs: all that masks, losses and refits of that layer need to know.

They are averages of x~ x~', x~ y', y^2, x~ and y over the layer's input patches x~ (of the pruned
network) and its outputs y (of the dense network, without bias), in float64 (`MomentSums`). Where
there are fewer patches than half the rows, they stand for their products, which are larger.

Rows stand in the order of the input groups: input FMs in the layer's order, Kin at a time, the last
group padded with dead rows, so that every group has w = Kin * kernel positions of them. A matrix
over the byte limit is cut into runs of input groups without correlation between runs. Convolution
groups and runs together are called bands: B = G * runs matrices of d rows each.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from crosspruner.sparsity import GroupLayout


@dataclass(frozen=True)
class Moments:
    """Averages over the samples of one layer; float64."""

    products: Tensor | None
    """(B, d, d) E[x~ x~'] of each band; None where there are patches: see `second`."""
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
    patches: Tensor | None = None
    """(n, d) the patches, where there is one band and fewer of them than half its rows."""

    @cached_property
    def second(self) -> Tensor:
        """(B, d, d) E[x~ x~'] of each band. Made of the patches if there are any, which takes
        gigabytes where rows are many: `second_times`, `power` and `kernel_energy` do without."""
        if self.patches is None:
            assert self.products is not None
            return self.products
        return (self.patches.T @ self.patches / self.samples).unsqueeze(0)

    @property
    def power(self) -> Tensor:
        """(B, d) E[x~^2], the diagonal of `second`."""
        if self.patches is None:
            return self.second.diagonal(dim1=1, dim2=2)
        return self.patches.square().mean(0, keepdim=True)

    @property
    def runs(self) -> int:
        """Runs of input groups in each convolution group; 1 = nothing was cut."""
        return self.cross.shape[0] // self.layout.conv_groups

    @property
    def width(self) -> int:
        """w: rows of one input group."""
        groups = -(-self.layout.input_groups // self.runs)
        return self.cross.shape[1] // groups

    def second_times(self, columns: Tensor) -> Tensor:
        """second @ columns for columns (B, d, m), among the patches where there are few."""
        if self.patches is None:
            return self.second @ columns
        return (self.patches.T @ (self.patches @ columns[0] / self.samples)).unsqueeze(0)

    def output_energy(self, columns: Tensor) -> Tensor:
        """(B, m) the mean square of what each of columns (B, d, m) makes of the patches."""
        if self.patches is None:
            return ((self.second @ columns) * columns).sum(1)
        return (self.patches @ columns[0]).square().mean(0, keepdim=True)

    def centred(self) -> "Moments":
        """The moments about the mean: those of a layer whose outputs are shifted for free.

        A bias, or a batch norm that follows, takes up any constant error.
        """
        into = self.mean_in.unsqueeze(2)
        per_band = self.mean_out.repeat_interleave(self.runs, 0).unsqueeze(1)
        return replace(
            self,
            products=None if self.products is None else self.products - into @ into.mT,
            cross=self.cross - into * per_band,
            energy=(self.energy - self.mean_out.square()).clamp(min=0),
            patches=None if self.patches is None else self.patches - self.mean_in,
        )

    def place(self, weight: Tensor) -> Tensor:
        """A weight (Cout, fan_in, ...) as (B, d, Cout / G) float64 in the order of the rows."""
        layout = self.layout
        kernels = weight.detach().to(self.cross).reshape(layout.conv_groups, -1, *_fm_shape(weight))
        placed = place_fms(kernels, layout, 2, self.runs * -(-layout.input_groups // self.runs))
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
        if self.patches is None:
            own = self.second.view(len(placed), len(fms), positions, len(fms), positions)
            own = own[:, fms, :, fms]  # (FMs, B, k, k)
        else:
            by_fm = self.patches.view(-1, len(fms), positions).transpose(0, 1)
            own = (by_fm.mT @ by_fm / self.samples).unsqueeze(1)
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
        places = self.cross.shape[1] // positions
        spare = torch.arange(layout.fan_in, places).expand(layout.conv_groups, -1)
        fms = torch.cat([order, spare], 1).to(self.cross.device)
        rows = (fms.unsqueeze(2) * positions + torch.arange(positions).to(fms)).flatten(1)
        band = torch.arange(len(rows)).to(fms).unsqueeze(1)
        products = self.products
        if products is not None:
            products = products[band.unsqueeze(2), rows.unsqueeze(2), rows.unsqueeze(1)]
        return replace(
            self,
            products=products,
            cross=self.cross[band, rows],
            mean_in=self.mean_in[band, rows],
            layout=layout,
            patches=None if self.patches is None else self.patches[:, rows[0]],
        )


def _fm_shape(weight: Tensor) -> tuple[int, int]:
    """Input FMs of one convolution group, kernel positions."""
    return weight.shape[1], weight[0, 0].numel()


def place_fms(values: Tensor, layout: GroupLayout, dim: int, groups: int) -> Tensor:
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
