"""Batch-norm statistics measured anew, after the layers before them have changed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crosspruner.errors import DataError
from crosspruner.pruning.walk import Stop, run_to, stops

# Images squared in float64 at once.
_TOGETHER = 32


def reestimate(network: nn.Module, batches: Sequence[Tensor], stop: Stop) -> None:
    """Set the statistics of one batch norm to those of all its inputs on the calibration images.

    The variance is that of all images together, not a mean over batches, so batches of any size,
    one image included, give the same result. Every layer before it must be in its final state.

    Args:
        network: in evaluation mode; changed in place.
        batches: calibration images.
        stop: the batch norm, as `walk.stops` found it.

    Raises:
        DataError: its inputs are NaN or Inf.
    """
    norm = stop.modules[0]
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is None:
        return  # it normalises by the batch at hand
    sums = NormSums(norm)

    def take(_module: nn.Module, inputs: Tensor, _output: Tensor) -> None:
        sums.update(inputs)

    for images in batches:
        run_to(network, images, stop, take)
    sums.write(stop.name)


def measure(stop: Stop, inputs: Tensor) -> None:
    """Set the statistics of one batch norm to those of all its inputs, given at once.

    Raises:
        DataError: they are NaN or Inf.
    """
    norm = stop.modules[0]
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is not None:
        sums = NormSums(norm)
        for part in inputs.split(_TOGETHER):
            sums.update(part)
        sums.write(stop.name)


class NormSums:
    """Running sums of what a batch norm reads."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        self.norm = norm
        self.total = torch.zeros_like(norm.running_mean, dtype=torch.float64)
        self.squares, self.count = torch.zeros_like(self.total), 0

    def update(self, inputs: Tensor) -> None:
        """Take in one batch, (N, C, ...)."""
        channels = inputs.transpose(0, 1).flatten(1)
        self.total += channels.sum(1, dtype=torch.float64)
        self.squares += channels.double().square().sum(1)
        self.count += channels.shape[1]

    def write(self, name: str) -> None:
        """Make the mean and the variance of what was seen the statistics of the batch norm.

        Raises:
            DataError: they are NaN or Inf.
        """
        norm, count = self.norm, self.count
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = self.total / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        if not bool((mean.isfinite() & variance.isfinite()).all()):
            raise DataError(
                f"batch norm {name} meets NaN or Inf on the calibration images: check the weights "
                "and the scale of the images"
            )
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance * count / max(count - 1, 1))  # unbiased, as PyTorch's


def reestimate_all(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """`reestimate` every batch norm of a network, in the order in which they run.

    Args:
        network: changed in place; its mode is left as it was.
        batches: calibration images.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        for stop in stops(network, batches[0], {}):
            reestimate(network, batches, stop)
    finally:
        for module, mode in modes.items():
            module.training = mode
