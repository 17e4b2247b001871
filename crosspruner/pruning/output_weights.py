"""What an error at each output FM of each layer does to the network's own output.

To second order a small error e of a layer's output y raises the Kullback-Leibler divergence between
the network's predictions with and without it by e' F e / 2, with F the Fisher information of y.
Its diagonal, summed over the positions of an output FM, weighs the FM's mean squared error; layers
become comparable with each other, and outputs of one layer too. Labels are drawn from the
predictions, so no data set needs any.

Source: natural gradient and K-FAC (Martens and Grosse, ICML 2015) take the same expectation; using
its diagonal to weigh layer problems is our reading.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.layer_modules import matrix_shape, output_maps
from crosspruner.pruning.function_calls import FunctionCalls
from crosspruner.pruning.walk import Stop, forward


def output_weights(
    network: nn.Module,
    names: Mapping[str, Sequence[str]],
    batches: Sequence[Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Weigh the output FMs of some layers by what their errors do to the predictions.

    Args:
        network: in evaluation mode; neither weights nor gradients change.
        names: layer -> names of the modules that use its weight.
        batches: calibration images, (N, ...) each.
        generator: CPU generator of the labels drawn.

    Returns:
        Layer -> (Cout,) float64, >= 0, E over images of the sum over positions of
        (d log p(label) / dy)^2. Empty for a network whose output is no (N, classes) tensor, or
        which no gradient passes through: nothing is known about it then.

    Raises:
        ModelError: the network does not run on the images.
    """
    modules = {user: layer_module(network, user) for users in names.values() for user in users}
    sums = {n: torch.zeros(matrix_shape(modules[n])[0], dtype=torch.float64) for n in names}
    watchers = {modules[u]: _Watcher(sums[name]) for name, users in names.items() for u in users}
    frozen = [p for p in network.parameters() if p.requires_grad]
    hooks = [module.register_forward_hook(watcher) for module, watcher in watchers.items()]
    functions = FunctionCalls(watchers, after=lambda m, _, y: watchers[m](m, (), y))
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        images = 0
        for batch in batches:
            if not batch.is_floating_point():
                return {}
            with functions.watching():
                known = _backward(network, batch, generator)
            if not known:
                return {}
            images += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)
    weights = {name: total / images for name, total in sums.items()}
    return {k: v for k, v in weights.items() if bool(v.isfinite().all()) and bool(v.any())}


class _Watcher:
    """Forward hook that sums the squared gradients of a layer's output by FM."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def __call__(self, module: nn.Module, _: tuple, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()  # nothing before it needs a gradient

        def note(gradient: Tensor) -> None:
            squared = output_maps(module, gradient).float().square()
            self.total += squared.sum((0, 2, 3)).double().cpu()

        output.register_hook(note)
        return output.clone() if output.is_leaf else output


@torch.enable_grad()
def _backward(network: nn.Module, images: Tensor, generator: torch.Generator) -> bool:
    """One backward pass of -log p(label drawn from the predictions), summed over the images."""
    logits = forward(network, images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.requires_grad:
        return False
    logits = logits.float()
    chances = logits.detach().softmax(1).cpu()
    if not bool(chances.isfinite().all()):
        return False
    labels = torch.multinomial(chances, 1, generator=generator).squeeze(1).to(logits.device)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    return True


def norm_weights(network: nn.Module, stop: Stop) -> Tensor | None:
    """(Cout,) gamma^2 / variance of the batch norm behind a layer; None without one.

    What an error weighs behind the batch norm: the stand-in where no gradients are to be had.
    """
    if stop.norm is None:
        return None
    norm = network.get_submodule(stop.norm)
    assert isinstance(norm, _BatchNorm)
    if norm.running_var is None:
        return None
    weights = 1 / (norm.running_var.double() + norm.eps)
    return weights if norm.weight is None else weights * norm.weight.detach().double().square()
