"""Random draws that depend on a key alone, never on what ran before them.

Everything random in training data is drawn from a key such as (seed, epoch, image), so a resumed
run sees the batches and augmentations of the run that was not interrupted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed_seed(*key: int) -> int:
    """One 64-bit seed from several non-negative integers; near keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator whose draws depend on `key` only."""
    return torch.Generator().manual_seed(mixed_seed(*key))


@contextmanager
def keyed_rng(*key: int) -> Iterator[None]:
    """Within the block, torch's global CPU generator starts from `key`; afterwards it is as before.

    Transforms of torchvision draw from the global generator and take no other. Accelerator
    generators are not touched.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(mixed_seed(*key))
    try:
        yield
    finally:
        torch.set_rng_state(state)
