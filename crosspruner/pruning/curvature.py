"""Running curvature of a layer while it trains: what a group costs once the others make up for it.

The output error of removing the groups R of a layer and refitting the rest in closed form is
tr(W_R' [(H^-1)_RR]^-1 W_R) with H = E[x x'] the second moment of the layer's input patches. For one
group this is its saliency; it needs only the diagonal blocks of H^-1. H is kept as an exponential
moving average over randomly drawn patches of the training batches.

Source: optimal brain surgeon (Hassibi and Stork 1993) in its group form (OSSCAR, Meng et al. 2024);
using it as the state of a per-step LGD is our reading (design, section 4.8).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.hardware.layer_modules import conv_padding, padded_maps, pixels_read, window_of
from crosspruner.sparsity import GroupLayout


class RunningMoment:
    """Moving average of the patch second moment of one layer, cut where it would grow too large.

    Args:
        module: a Conv2d or Linear layer.
        layout: its groups.
        rows: patches drawn from each batch.
        memory: share of the old average that an update keeps, in [0, 1).
        widest: rows of the largest moment kept whole. A wider layer is treated as several runs of
            consecutive input groups without correlation between runs.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: GroupLayout,
        rows: int = 512,
        memory: float = 0.95,
        widest: int = 2304,
    ) -> None:
        self.module = module
        self.layout = layout
        self.rows = rows
        self.memory = memory
        weight = module.weight
        assert isinstance(weight, Tensor)
        self.positions = weight[0, 0].numel()
        self.width = layout.kin * self.positions
        runs = -(-layout.input_groups * self.width // max(widest, self.width))
        self.groups_per_run = -(-layout.input_groups // runs)
        self.runs = -(-layout.input_groups // self.groups_per_run)
        self.side = self.groups_per_run * self.width
        self.moment = torch.zeros(layout.conv_groups * self.runs, self.side, self.side)
        self.seen = 0.0

    @torch.no_grad()
    def update(
        self,
        inputs: Tensor,
        generator: torch.Generator,
        rows: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Take in the layer's input of one batch, (B, Cin, H, W) or (B, ..., Cin).

        A batch whose moment is not finite is skipped: an average would never forget it.

        Args:
            inputs: of the layer.
            generator: CPU generator of the patches drawn.
            rows: patches to draw; None = as many as ever. Each batch weighs alike.
            size: of the output, see `draw_patches`.
        """
        rows = self.rows if rows is None else rows
        patches = draw_patches(self.module, inputs, rows, generator, size)
        patches = by_input_group(patches, self.layout, self.runs * self.groups_per_run)
        patches = patches.reshape(self.layout.conv_groups, rows, self.runs, -1)
        patches = patches.transpose(1, 2).flatten(0, 1)
        self.moment = self.moment.to(patches.device)
        if not bool(patches.square().sum().isfinite()):
            return
        self.moment.mul_(self.memory).baddbmm_(
            patches.transpose(1, 2), patches, alpha=(1 - self.memory) / patches.shape[1]
        )
        self.seen = self.memory * self.seen + 1 - self.memory

    @torch.no_grad()
    def inverse_blocks(self, damping: float = 0.01) -> Tensor:
        """[(H^-1)_gg]^-1 of every input group.

        Args:
            damping: share of the mean diagonal that is added to the diagonal, > 0.

        Returns:
            (G, P, w, w) for G convolution groups, P input groups, w = Kin * kernel positions. The
            rows past the end of a shorter last group meet zero weights only.
        """
        assert self.seen > 0, "no batch was seen yet"
        layout = self.layout
        moment = self.moment / self.seen
        diagonal = moment.diagonal(dim1=1, dim2=2)
        mean = diagonal.sum() / (layout.conv_groups * layout.fan_in * self.positions)
        diagonal.add_(damping * mean.clamp(min=torch.finfo(moment.dtype).tiny ** 0.5))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
        blocks = inverse.view(
            layout.conv_groups, self.runs, self.groups_per_run, self.width, -1, self.width
        )
        own = blocks.diagonal(dim1=2, dim2=4).permute(0, 1, 4, 2, 3).flatten(1, 2)
        return torch.linalg.inv(own[:, : layout.input_groups])


class RunningFisher:
    """Moving average of what an error at each output FM of a layer does to the loss.

    The diagonal of the empirical Fisher information of the layer's output, E (dLoss/dy)^2 over
    images and positions. Each batch counts in shares of its own mean, so that neither the scale of
    a mixed-precision loss nor a batch of hard images moves the average; only ratios between
    outputs of one layer are used.

    Args:
        module: a Conv2d or Linear layer.
        memory: share of the old average that an update keeps, in [0, 1).
    """

    def __init__(self, module: nn.Module, memory: float = 0.95) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        self.channel_dim = 1 if isinstance(module, nn.Conv2d) else -1
        self.memory = memory
        self.average = torch.zeros(len(weight))

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        """Take in dLoss/dy of one batch, shaped as the output; skips one that is not finite."""
        squared = gradient.float().square().movedim(self.channel_dim, 0).flatten(1).mean(dim=1)
        mean = squared.mean()
        if bool(mean.isfinite()) and bool(mean > 0):
            self.average = self.average.to(squared.device)
            self.average.mul_(self.memory).add_(squared / mean, alpha=1 - self.memory)

    def weights(self) -> Tensor | None:
        """(Cout,) with mean 1; None before the first gradient."""
        mean = self.average.mean()
        return self.average / mean if bool(mean > 0) else None


@torch.no_grad()
def saliency(
    weight: Tensor,
    inverse_blocks: Tensor,
    layout: GroupLayout,
    output_weights: Tensor | None = None,
) -> Tensor:
    """tr(W_g' [(H^-1)_gg]^-1 W_g) of every group, weighed by output.

    Args:
        weight: (Cout, fan_in, ...).
        inverse_blocks: (G, P, w, w) from `RunningMoment.inverse_blocks`.
        layout: the groups.
        output_weights: (Cout,) what an error at each output weighs. None = one over the sum of the
            output's values over the input groups: the batch norm that usually follows makes an
            error count relative to its output's scale.

    Returns:
        (U, P), >= 0. Only ratios within a layer have a meaning.
    """
    groups, inputs, width, _ = inverse_blocks.shape
    rows = weight.detach().to(inverse_blocks.dtype).reshape(groups, -1, weight[0].numel())
    parts = by_input_group(rows, layout, inputs).view(groups, -1, inputs, width)
    energy = torch.einsum("gopv,gpvw,gopw->gop", parts, inverse_blocks, parts).clamp(min=0)
    energy = energy.flatten(0, 1)  # (Cout, P)
    tiny = torch.finfo(energy.dtype).tiny
    if output_weights is None:
        share = energy / energy.sum(dim=1, keepdim=True).clamp(min=tiny)
    else:
        share = energy * output_weights.to(energy).unsqueeze(1)
    if layout.grain == "column":
        return share
    sums = share.new_zeros(layout.shape)
    return sums.index_add_(0, layout.unit_of_output.to(share.device), share)


@torch.no_grad()
def draw_patches(
    module: nn.Module,
    inputs: Tensor,
    rows: int,
    generator: torch.Generator,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Input patches at random images and output positions.

    Args:
        module: a Conv2d or Linear layer.
        inputs: its input, (B, Cin, H, W) or (B, ..., Cin).
        rows: patches to draw, with replacement.
        generator: CPU generator of the draw.
        size: height and width of a Conv2d layer's output, from which follows what a subclass pads
            in its forward pass; None = what the module's own padding gives.

    Returns:
        (G, rows, fan_in * kernel positions) float32, in the order of the flattened weight.
    """
    if not isinstance(module, nn.Conv2d):
        flat = inputs.reshape(-1, inputs.shape[-1])
        pick = torch.randint(len(flat), (rows,), generator=generator).to(inputs.device)
        return flat[pick].float().unsqueeze(0)
    if size is None:
        axes = zip(inputs.shape[-2:], conv_padding(module), *window_of(module), strict=True)
        high, wide = ((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, k, s, d in axes)
    else:
        high, wide = size
    padded = padded_maps(module, inputs, (high, wide))
    image, y, x = (
        torch.randint(n, (rows,), generator=generator) for n in (len(padded), high, wide)
    )
    read = pixels_read(module, y * wide + x, wide, padded.shape[3]).T.to(inputs.device)
    # Advanced indices around the channel slice put it last: (rows, kernel, Cin).
    patches = padded.flatten(2)[image.to(inputs.device).unsqueeze(1), :, read]
    patches = patches.permute(2, 0, 1).float().reshape(module.groups, -1, rows, read.shape[1])
    return patches.transpose(1, 2).flatten(2)


def by_input_group(rows: Tensor, layout: GroupLayout, input_groups: int) -> Tensor:
    """Put columns (input FM, kernel position) in the order of the input groups, zero-padded.

    Args:
        rows: (G, n, fan_in * positions).
        layout: the groups.
        input_groups: input groups to pad to, >= layout.input_groups.

    Returns:
        (G, n, input_groups * Kin * positions).
    """
    kernels = rows.unflatten(2, (layout.fan_in, -1))
    if layout.input_order is not None:
        order = layout.input_order.to(rows.device)[:, None, :, None].expand_as(kernels)
        kernels = torch.gather(kernels, 2, order)
    return F.pad(kernels, (0, 0, 0, input_groups * layout.kin - layout.fan_in)).flatten(2)
