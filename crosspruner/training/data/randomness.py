"""Random draws that depend on a key alone, never on what ran before them.

Everything random in training data is drawn from a key such as (seed, epoch, image), so a resumed
run sees the batches and augmentations of the run that was not interrupted.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What the draws are for, so that equal numbers in two places never give equal draws."""

    ORDER = 1
    """Of the images in an epoch: key (seed, epoch)."""
    AUGMENTATION = 2
    """Key (seed, epoch * size + index of the image, or of the first one of the batch)."""
    CALIBRATION = 3
    """Which images calibrate: key (calibration_seed); of the test images, key (split_seed)."""
    SYNTHETIC = 4
    """Made-up images: key (split_seed)."""
    NETWORK = 5
    """Dropout and the like: key (seed, epoch, process)."""
    LOADER = 6
    """Seeds of loader processes: key (seed)."""
    MIXING = 7
    """Mixup and cutmix: key (seed, epoch, batch, process)."""


def mixed_seed(stream: Stream, *key: int) -> int:
    """One 64-bit seed from a stream and non-negative integers; near keys give unrelated seeds."""
    return int(np.random.SeedSequence((stream, *key)).generate_state(1, np.uint64)[0])


def keyed_generator(stream: Stream, *key: int) -> torch.Generator:
    """A CPU generator whose draws depend on `stream` and `key` only."""
    return torch.Generator().manual_seed(mixed_seed(stream, *key))


@contextmanager
def keyed_rng(stream: Stream, *key: int) -> Iterator[None]:
    """Within the block, the global generators start from the key; then they are as before.

    Those of torch (on the CPU), numpy and Python: transforms of torchvision and timm draw from them
    and take no others. Accelerator generators are not touched.
    """
    seed = mixed_seed(stream, *key)
    state, states = torch.get_rng_state(), (np.random.get_state(), random.getstate())  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm draws from this one)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])
