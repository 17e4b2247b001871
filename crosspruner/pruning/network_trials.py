"""Whole networks pruned on trial, and how far their answers are then from the dense network's."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from crosspruner.hardware import Plan
from crosspruner.pruning.held_out import HeldOut
from crosspruner.pruning.layerwise import prune_layers
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.sparsity import GroupLayout


class NetworkTrials:
    """Trials of one network, each on two halves of the images: one fits while the other judges.

    Networks that lose much come out some points of accuracy apart on other images. Masks are chosen
    by `taylor`, a tenth of the time of `lgd_rpp`.

    Args:
        dense: the network, in evaluation mode; its output (N, classes). Not changed.
        plan: its plan.
        layouts: the prunable layers.
        batches: calibration images, two and more in all.
        weights: layer name -> (Cout,) what a squared error of each output weighs.
        generator: CPU generator of all randomness; every trial draws alike.
    """

    def __init__(
        self,
        dense: nn.Module,
        plan: Plan,
        layouts: Mapping[str, GroupLayout],
        batches: Sequence[Tensor],
        weights: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        self._network = dense, plan, layouts
        self._weights, self._generator = weights, generator
        self._draws = generator.get_state()
        self._halves = [HeldOut(batches), HeldOut(batches, swapped=True)]
        for half in self._halves:
            half.expect(dense)

    @torch.no_grad()
    def error(self, blocks: Mapping[str, int], settings: LayerwiseSettings) -> float:
        """Squared error of the logits, mean of both halves.

        Args:
            blocks: layer name -> blocks to keep.
            settings: how layers are pruned; its solver does not count.
        """
        quick, total = replace(settings, solver="taylor"), 0.0
        dense, plan, layouts = self._network
        weights, generator = self._weights, self._generator
        for half in self._halves:
            generator.set_state(self._draws)
            trial = copy.deepcopy(dense)
            prune_layers(
                *(trial, dense, plan, layouts, blocks, half.fitting, weights, quick, generator),
                level=logging.DEBUG,
            )
            total += half.error(trial) / len(self._halves)
        return total
