"""Batch norms measured on the chip, which shifts and scales what they were trained on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def measuring_norms(network: nn.Module) -> Iterator[None]:
    """Within it, each batch norm takes the statistics of its input, and then normalises by them.

    So one forward pass measures them all, in order, on all images that it is given. The statistics
    stay; a batch norm that runs twice keeps those of its last input.

    Args:
        network: in evaluation mode; its running statistics are changed in place. Batch norms that
            keep none, and other norms, are left alone.

    Source: adaptive batch-norm statistics (AdaBS), Joshi et al., Nature Communications 2020.
    """
    with ExitStack() as hooks:
        for norm in network.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                handle = norm.register_forward_pre_hook(_take)
                hooks.callback(handle.remove)
        with torch.no_grad():
            yield


def _take(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    dims = [0, *range(2, inputs[0].dim())]
    dtype = norm.running_var.dtype
    variance, mean = torch.var_mean(inputs[0].to(dtype), dims)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
