"""How far a changed network's answers are from what they were, on images held out.

Two measures. The divergence of the predictions is what counts, and tells well what single layers
cost. Once all layers are pruned few images make up most of it, so that hundreds cannot tell apart
two networks that differ by a point of accuracy; the squared error of the logits can
(docs/measurements.md).

Source: logits as what to match, Ba and Caruana, NIPS 2014; as the judge of a budget, ours.
"""

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
        swapped: whether those that judge otherwise fit, and the other way round.

    Attributes:
        fitting: batches to fit on.
    """

    def __init__(self, batches: Sequence[Tensor], swapped: bool = False) -> None:
        images = torch.cat(list(batches))
        cut = max(1, round(HELD_OUT * len(images)))
        parts = images[:cut], images[cut:]
        judging, fitting = reversed(parts) if swapped else parts
        size = max(len(batch) for batch in batches)
        self.fitting = fitting.split(size)
        self._judging, self._judged = judging.split(size), len(judging)
        self._expected: list[Tensor] = []

    def expect(self, network: nn.Module) -> None:
        """Take a network's logits for the truth.

        Args:
            network: in evaluation mode; its output (N, classes).
        """
        self._expected = [_logits(network, part) for part in self._judging]

    def divergence(self, network: nn.Module) -> float:
        """Mean Kullback-Leibler divergence of its predictions from the truth's, in nats."""
        total = 0.0
        for part, logits in zip(self._judging, self._expected, strict=True):
            truth = logits.log_softmax(1)
            total += float((truth.exp() * (truth - _logits(network, part).log_softmax(1))).sum())
        return total / self._judged

    def error(self, network: nn.Module) -> float:
        """Squared error of the logits, >= 0: sum over classes, mean over images."""
        total = 0.0
        for part, truth in zip(self._judging, self._expected, strict=True):
            total += float((_logits(network, part) - truth).square().sum())
        return total / self._judged


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    """(N, classes) float32, without the mean over classes, which no prediction depends on."""
    logits: Tensor = forward(network, images).float()
    return logits - logits.mean(1, keepdim=True)
