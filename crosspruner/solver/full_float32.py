"""Products of float32 in float32, whatever the process allows for training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Neither TF32 nor bfloat16 in products of float32 matrices, and the old setting after it.

    `torch.set_float32_matmul_precision("medium")`, which Lightning proposes for GPUs, leaves such
    products three digits or fewer: enough to train by, too few for moments and what is made of
    them. Convolutions of networks keep their own setting.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for each backend by itself: the two ways must not be mixed
        backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        kept = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, kept, strict=True):
                backend.fp32_precision = precision
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
