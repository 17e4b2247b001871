"""Which image comes when: the order of an epoch, and its share for each process."""

from collections.abc import Iterator

import torch
from torch.utils.data import DistributedSampler

from crosspruner.training.data.randomness import Stream, keyed_generator


class EpochSampler(DistributedSampler[int]):
    """A shuffled epoch whose order depends on (seed, epoch) only.

    It yields `epoch * size + index`: one integer that says which image, and which epoch's
    augmentation of it (data sets take it modulo their size), so worker processes need not be told
    the epoch. Lightning calls `set_epoch`, and leaves a DistributedSampler as it is.

    Args:
        size: number of images.
        seed: >= 0.
        num_replicas, rank: processes that share an epoch, and which of them this is. Every process
            gets the same number of images; where they don't divide, the first ones come twice.
    """

    def __init__(self, size: int, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(range(size), num_replicas=num_replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.size = size

    def __iter__(self) -> Iterator[int]:
        generator = keyed_generator(Stream.ORDER, self.seed, self.epoch)
        order = torch.randperm(self.size, generator=generator)
        order = order.repeat(-(-self.total_size // self.size))[: self.total_size]
        share = order[self.rank : self.total_size : self.num_replicas]
        return iter((share + self.epoch * self.size).tolist())


class ShareSampler(DistributedSampler[int]):
    """Every image once, in order, dealt out to the processes: counts are exact on several too."""

    def __init__(self, size: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(range(size), num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.size, self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.num_replicas))
