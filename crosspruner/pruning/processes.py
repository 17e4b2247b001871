"""What the processes of a distributed run agree on; with one process, nothing to do."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
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
def of_first(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that the first process holds, on every process.

    Args:
        tensors: one or more on each process, as many and of what shapes it likes, all on the device
            of the process.
    """
    if not is_distributed():
        return list(tensors)
    kinds = [[(tensor.shape, tensor.dtype) for tensor in tensors]]
    dist.broadcast_object_list(kinds, src=0)
    found = list(tensors)
    if dist.get_rank():
        device = tensors[0].device
        found = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds[0]]
    found = [tensor.contiguous() for tensor in found]
    for tensor in found:
        dist.broadcast(tensor, src=0)
    return found


@torch.no_grad()
def copy_first(network: nn.Module) -> None:
    """Give a network the parameters and buffers that it has on the first process, in place."""
    if is_distributed():
        own = [*network.parameters(), *network.buffers()]
        for tensor, first in zip(own, of_first(own), strict=True):
            tensor.copy_(first)


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
