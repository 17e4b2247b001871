"""Masks on trial: layers of a network computed as if pruned, and put back as they were."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.weight_form import attainable, read_matrix, write_matrix
from crosspruner.pruning.layer_state import LayerState
from crosspruner.sparsity import GroupLayout


class TrialMasks:
    """Some layers, the matrices they compute with, and masks that come and go.

    Args:
        network: its parameters are changed in place, whatever gives a layer its weight.
        layouts: the layers, with their groups.

    Attributes:
        matrices: layer name -> (Cout, Cin / G, kh, kw), as it was.
    """

    def __init__(self, network: nn.Module, layouts: Mapping[str, GroupLayout]) -> None:
        self.layouts = layouts
        self.modules = {name: layer_module(network, name) for name in layouts}
        self.matrices = dense_matrices(network, layouts)
        self._before = LayerState.of_modules(self.modules.values())

    @torch.no_grad()
    def put(self, masks: Mapping[str, Tensor]) -> None:
        """Leave of each of these layers what its mask keeps.

        Args:
            masks: layer name -> (U, P) bool; the other layers stay as they are.
        """
        for name, mask in masks.items():
            module, matrix = self.modules[name], self.matrices[name]
            kept = self.layouts[name].expand_like(mask, matrix).to(matrix.device)
            write_matrix(module, attainable(module, torch.where(kept, matrix, 0.0)))

    @torch.no_grad()
    def restore(self) -> None:
        """Put all layers back, bit for bit."""
        self._before.restore()


@contextmanager
def on_trial(network: nn.Module, layouts: Mapping[str, GroupLayout]) -> Iterator[TrialMasks]:
    """Masks may be put on the layers inside; afterwards the network is as it was."""
    trial = TrialMasks(network, layouts)
    try:
        yield trial
    finally:
        trial.restore()


def dense_matrices(network: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Layer name -> a copy of the matrix it computes with, (Cout, Cin / G, kh, kw)."""
    return {name: read_matrix(layer_module(network, name)).clone() for name in names}
