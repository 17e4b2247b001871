"""Parts of a batch, one on each core.

Small factors run on a single core however many there are, and a search is thousands of them. Parts
that know nothing of each other are worked on side by side instead.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

PARTS = 4
"""A batch is cut into a multiple of so many parts, whatever the number of cores: parts may draw
from generators of their own, and results must not depend on the machine."""

Part = TypeVar("Part")
Answer = TypeVar("Answer")


def side_by_side(
    work: Callable[[Part], Answer], parts: Sequence[Part], device: torch.device
) -> list[Answer]:
    """What `work` returns for each part, in their order.

    Args:
        work: touches nothing that another part does; draws from a generator of its own, if any.
        parts: on the CPU, and with at least as many as PyTorch has threads, each thread takes one
            after the other; fewer leave the threads to the products within them.
        device: what the parts are on.

    Raises:
        whatever `work` raises, for the first part that did; later parts are not begun then.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or not 1 < threads <= len(parts):
        return [work(part) for part in parts]
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def alone(part: Part) -> Answer:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):  # of each thread
            return work(part)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, parts))
    finally:
        torch.set_num_threads(threads)  # what threads begun later start with, too


def part_size(number: int, most: int) -> int:
    """Problems, 1..most, of each part of a batch of so many: parts of the same size, so that two
    cores, or four, are done at the same time; all of them where one part has room for them."""
    parts = -(-number // most)
    if parts > 1:
        parts = -(-parts // PARTS) * PARTS
    return max(1, -(-number // max(1, parts)))
