"""Batch-norm statistics set right, after the layers before them have changed.

On the calibration images a batch norm of the dense network reads something else than its running
statistics say: those come from augmented training images, and from many more. What pruning has
changed is the difference between two networks on the same images. So statistics are *shifted* by
that difference, and where nothing has changed the network stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crosspruner.errors import DataError
from crosspruner.hardware.evaluation_mode import evaluation
from crosspruner.pruning.walk import Stop, forward, run_to, stops

# Images squared in float64 at once.
_TOGETHER = 32


@dataclass(frozen=True)
class NormReference:
    """A batch norm of the dense network: what it reads on the calibration images, and assumes."""

    mean: Tensor
    """(C,) float64, measured."""
    variance: Tensor
    """(C,) float64, measured."""
    running_mean: Tensor
    """(C,), its statistics."""
    running_var: Tensor
    """(C,), likewise."""


@contextmanager
def reading_norms(dense: nn.Module) -> Iterator[Callable[[], dict[str, NormReference]]]:
    """Watch what every batch norm with statistics reads while a network runs.

    Args:
        dense: the network before pruning, in evaluation mode; not changed.

    Yields:
        Gives, once the images have passed, the name of each batch norm -> its reference; those that
        no image has reached have none.
    """
    sums = {
        name: NormSums(module)
        for name, module in dense.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }

    def take(own: NormSums, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        for part in inputs[0].detach().split(_TOGETHER):
            own.update(part)

    with ExitStack() as hooks:
        for own in sums.values():
            hooks.callback(own.norm.register_forward_pre_hook(partial(take, own)).remove)
        yield lambda: {name: own.reference() for name, own in sums.items() if own.count}


def norm_references(dense: nn.Module, batches: Sequence[Tensor]) -> dict[str, NormReference]:
    """What every batch norm with statistics reads, in one pass over the images.

    Args:
        dense: the network before pruning, in evaluation mode; not changed.
        batches: calibration images.

    Returns:
        As `reading_norms` gives.
    """
    with reading_norms(dense) as references, torch.no_grad():
        for images in batches:
            forward(dense, images)
    return references()


def reestimate(
    network: nn.Module, batches: Sequence[Tensor], stop: Stop, reference: NormReference | None
) -> None:
    """Set the statistics of one batch norm right for all its inputs on the calibration images.

    The variance is that of all images together, not a mean over batches, so batches of any size,
    one image included, give the same result. Every layer before it must be in its final state.

    Args:
        network: in evaluation mode; changed in place.
        batches: calibration images.
        stop: the batch norm, as `walk.stops` found it.
        reference: the same batch norm in the dense network, on the same images: its statistics
            are shifted. None = they become those of the images.

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
    sums.write(stop.name, reference)


def measure(stop: Stop, inputs: Tensor, references: Mapping[str, NormReference]) -> None:
    """`reestimate` one batch norm from all its inputs, given at once.

    Raises:
        DataError: they are NaN or Inf.
    """
    norm = stop.modules[0]
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is not None:
        sums = NormSums(norm)
        for part in inputs.split(_TOGETHER):
            sums.update(part)
        sums.write(stop.name, references.get(stop.name))


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
        # One temporary in float64 less than by squares, which took most of the time.
        self.squares += torch.linalg.vector_norm(channels, dim=1, dtype=torch.float64).square()
        self.count += channels.shape[1]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance of what was seen, (C,) float64."""
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)

    def reference(self) -> NormReference:
        """What was seen, beside the statistics of the batch norm."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return NormReference(*self.moments(), norm.running_mean.clone(), norm.running_var.clone())

    def write(self, name: str, reference: NormReference | None = None) -> None:
        """Make what was seen the statistics of the batch norm, or shift those of the reference.

        The mean moves by as much as the measured one has, the variance by the same factor.

        Raises:
            DataError: it is NaN or Inf.
        """
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = self.moments()
        if not bool((mean.isfinite() & variance.isfinite()).all()):
            raise DataError(
                f"batch norm {name} meets NaN or Inf on the calibration images: check the weights "
                "and the scale of the images"
            )
        if reference is None:
            variance = variance * self.count / max(self.count - 1, 1)  # unbiased, as PyTorch's
        else:
            mean = reference.running_mean + (mean - reference.mean)
            # A batch norm divides by sqrt(variance + eps): so a channel that was constant, too.
            grown = (variance + norm.eps) / (reference.variance + norm.eps)
            variance = (reference.running_var + norm.eps) * grown - norm.eps
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp(min=0))


def reestimate_all(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Make the statistics of every batch norm those of the images, in the order in which they run.

    Batch by batch, a pass for each batch norm: it takes the memory of one batch, as the training
    beside it does. `measuring_norms` needs a single pass, with all images at once.

    Args:
        network: changed in place; its mode is left as it was.
        batches: calibration images.
    """
    with evaluation(network):
        for stop in stops(network, batches[0], {}):
            reestimate(network, batches, stop, None)
