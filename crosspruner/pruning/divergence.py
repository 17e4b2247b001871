"""How far a changed network's predictions are from what they were, on images held out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crosspruner.pruning.walk import forward

HELD_OUT = 0.5
"""Share of the calibration images that judge; the others fit."""


class HeldOut:
    """Calibration images, one part to fit on and one to judge by.

    Args:
        batches: calibration images, two and more in all.

    Attributes:
        fitting: batches to fit on.
    """

    def __init__(self, batches: Sequence[Tensor]) -> None:
        images = torch.cat(list(batches))
        self._judged = max(1, round(HELD_OUT * len(images)))
        size = max(len(batch) for batch in batches)
        self.fitting = images[self._judged :].split(size)
        self._judging = images[: self._judged].split(size)
        self._expected: list[Tensor] = []

    def expect(self, network: nn.Module) -> None:
        """Take a network's predictions for the truth.

        Args:
            network: in evaluation mode; its output (N, classes).
        """
        self._expected = [_log_chances(network, part) for part in self._judging]

    def divergence(self, network: nn.Module) -> float:
        """Mean Kullback-Leibler divergence from the truth, in nats."""
        total = 0.0
        for part, truth in zip(self._judging, self._expected, strict=True):
            total += float((truth.exp() * (truth - _log_chances(network, part))).sum())
        return total / self._judged


@torch.no_grad()
def _log_chances(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = forward(network, images)
    return logits.float().log_softmax(1)
