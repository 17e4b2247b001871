"""What each group does to the loss of each image: d loss_n / d beta_g, beta_g a factor on group g.

Their mean product over images is the Fisher information of the factors: how the loss rises when
groups are removed together, to second order.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosspruner.errors import DataError, ModelError
from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.layer_modules import operation_of, output_maps, padded_maps, window_of
from crosspruner.pruning.function_calls import FunctionCalls
from crosspruner.pruning.walk import forward
from crosspruner.sparsity import GroupLayout

_ENTRIES = 2**25
"""Numbers at once, of unfolded images or of their gradients by weight (float32: 128 MB)."""


def group_slopes(
    network: nn.Module,
    layouts: Mapping[str, GroupLayout],
    users: Mapping[str, Sequence[str]],
    weights: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """One backward pass over the calibration images.

    Args:
        network: in evaluation mode; not changed.
        layouts: the layers, with their groups.
        users: layer name -> names of the modules that use its weight.
        weights: layer name -> (Cout, fan_in, ...) what beta_g multiplies, as `read_matrix` gives
            it; the network itself may run with some of it zeroed.
        batches: calibration images.
        generator: CPU generator of the labels, which are drawn from the predictions.

    Returns:
        Layer name -> (images, U * P) sum over the group of weight * d loss_n / d weight.

    Raises:
        ModelError: the network gives no (N, classes) output that gradients pass through, or a layer
            that does not see whole images.
        DataError: gradients are not finite.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in layouts}
    of_layer = {
        name: dict.fromkeys(layer_module(network, user) for user in users[name]) for name in layouts
    }
    watchers = {
        module: _Watcher(module, layouts[name], weights[name])
        for name, modules in of_layer.items()
        for module in modules
    }
    hooks = [module.register_forward_hook(watcher) for module, watcher in watchers.items()]
    functions = FunctionCalls(
        watchers, after=lambda m, call, y: watchers[m].watch(call.x, y, call.batch_dim)
    )
    frozen = [p for p in network.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for images in batches:
            for watcher in watchers.values():
                watcher.begin(len(images))
            with functions.watching():
                _backward(network, images, generator)
            for name, modules in of_layer.items():
                slopes = [watchers[m].slopes for m in modules if watchers[m].calls]
                if not slopes:
                    raise DataError(f"layer {name} was not run by any calibration batch")
                parts[name].append(torch.stack(slopes).sum(0))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)
    slopes_of = {name: torch.cat(values) for name, values in parts.items()}
    bad = [name for name, values in slopes_of.items() if not bool(values.isfinite().all())]
    if bad:
        raise DataError(f"gradients of layers {', '.join(bad)} are NaN or Inf: check the weights")
    return slopes_of


class _Watcher:
    """Forward hook of one module: sums weight * gradient by image and group."""

    def __init__(self, module: nn.Module, layout: GroupLayout, weight: Tensor) -> None:
        self.module, self.layout, self.weight = module, layout, weight.detach().float()
        units, inputs = layout.shape
        numbers = torch.arange(units * inputs).view(units, inputs)
        self.group_of_kernel = layout.expand(numbers).flatten()
        self.begin(0)

    def begin(self, images: int) -> None:
        """Forget what was seen: the next batch has this many images."""
        self.images = images
        self.slopes = torch.zeros(0)
        self.calls = 0

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.watch(args[0], output)

    def watch(self, inputs: Tensor, output: Tensor, batch_dim: int = 0) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        inputs = inputs.detach().movedim(batch_dim, 0)
        output.register_hook(lambda g: self.note(inputs, g.detach().movedim(batch_dim, 0)))
        return output.clone() if output.is_leaf else output

    @torch.no_grad()
    def note(self, inputs: Tensor, gradient: Tensor) -> None:
        g = output_maps(self.module, gradient).float()
        x = padded_maps(self.module, inputs, (g.shape[2], g.shape[3])).float()
        unfolded = self.weight[0].numel() * self.layout.conv_groups * g.shape[2] * g.shape[3]
        chunk = max(1, _ENTRIES // max(unfolded, self.weight.numel()))
        pairs = zip(x.split(chunk), g.split(chunk), strict=True)
        slopes = torch.cat([self._slopes(*pair) for pair in pairs])
        if len(slopes) % self.images:
            raise ModelError(
                f"layer {self.layout.name} sees {len(slopes)} samples of {self.images} images: use "
                "a solver that needs no slopes of single images, such as lgd_rpp or obs_group"
            )
        # Windows and output depths are samples of their own; those of one image stand together.
        slopes = slopes.unflatten(0, (self.images, -1)).sum(1)
        self.slopes = self.slopes + slopes if self.calls else slopes
        self.calls += 1

    def _slopes(self, x: Tensor, g: Tensor) -> Tensor:
        layout, module = self.layout, self.module
        if operation_of(module) == "linear":
            x = x.flatten(2)
        else:
            kernel, stride, dilation = window_of(module)
            x = F.unfold(x, kernel, dilation, 0, stride)
        x = x.unflatten(1, (layout.conv_groups, -1))
        g = g.flatten(2).unflatten(1, (layout.conv_groups, -1))
        weight = self.weight.flatten(1).to(x.device)
        product = (g @ x.mT).flatten(1, 2) * weight  # (n, Cout, fan_in * positions)
        kernels = product.unflatten(2, (layout.fan_in, -1)).sum(3).flatten(1)
        slopes = kernels.new_zeros(len(kernels), layout.units * layout.input_groups)
        return slopes.index_add_(1, self.group_of_kernel.to(x.device), kernels).cpu()


@torch.enable_grad()
def _backward(network: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    logits = forward(network, images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.requires_grad:
        raise ModelError(
            "the network gives no (N, classes) output that gradients pass through: use a solver "
            "that needs none, such as lgd_rpp or obs_group"
        )
    chances = logits.detach().float().softmax(1).cpu()
    labels = torch.multinomial(chances, 1, generator=generator).squeeze(1).to(logits.device)
    F.cross_entropy(logits.float(), labels, reduction="sum").backward()
