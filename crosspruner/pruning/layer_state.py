"""What pruning a layer changes, kept to be put back."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from crosspruner.pruning.walk import Stop


@dataclass(frozen=True)
class LayerState:
    """A layer's parameters and the statistics of its batch norm, with a copy of each."""

    tensors: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, network: nn.Module, stop: Stop) -> "LayerState":
        """Copy the state of a layer of the network."""
        norms = [] if stop.norm is None else [network.get_submodule(stop.norm)]
        return cls.of_modules([*stop.modules, *norms])

    @classmethod
    def of_modules(cls, modules: Iterable[nn.Module]) -> "LayerState":
        """Copy the parameters and buffers of some modules."""
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        return cls([(tensor, tensor.detach().clone()) for tensor in tensors])

    def restore(self) -> None:
        """Put it back, in place."""
        for tensor, value in self.tensors:
            tensor.copy_(value)
