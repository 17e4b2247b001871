"""What the processes of a distributed run agree on; with one process, nothing to do."""

import torch
from torch import Tensor
from torch import distributed as dist


def is_distributed() -> bool:
    """Whether this process trains together with others (`torch.distributed` is initialised)."""
    return dist.is_available() and dist.is_initialized()


@torch.no_grad()
def mean_of_all(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, taken in place.

    Args:
        value: floating point, of the same shape everywhere, on the device of the process.
    """
    if is_distributed():
        dist.all_reduce(value)
        value.div_(dist.get_world_size())
    return value


@torch.no_grad()
def is_same_everywhere(value: Tensor) -> bool:
    """Whether all processes hold the same integers.

    Args:
        value: integers, of the same shape everywhere, on the device of the process.
    """
    if not is_distributed():
        return True
    lowest, highest = value.clone(), value.clone()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return torch.equal(lowest, highest)
