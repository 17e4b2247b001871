"""Masks that were found before training, kept while it goes on. Knows no trainer."""

from collections.abc import Sequence

from torch import nn

from crosspruner.errors import PlanError
from crosspruner.hardware import Plan
from crosspruner.hardware.attention import has_layer, layer_module
from crosspruner.hardware.layer_modules import LAYERS, matrix_shape
from crosspruner.pruning.oneshot import PruneResult
from crosspruner.pruning.pruner import Pruner
from crosspruner.pruning.schedule import Phase
from crosspruner.sparsity import GroupLayout


class FixedMasks(Pruner):
    """A `Pruner` whose masks are those of a `PruneResult`, frozen from the start.

    Args:
        result: what `crosspruner.prune` returned. Its masks and plans are used; the network that is
            trained may be `result.model`, or another of the same layers.
    """

    def __init__(self, result: PruneResult) -> None:
        plan = result.dense_plan
        super().__init__(plan.crossbar, plan.mapping, plan.grain, result.saved)
        self.result = result
        self.dense_plan = plan
        self.layouts = {
            name: GroupLayout.of(result.plan.layer(name), plan.grain) for name in result.masks
        }
        self.blocks = {
            name: layout.blocks_of(result.masks[name]) for name, layout in self.layouts.items()
        }

    def prepare(self, network: nn.Module, input_shape: Sequence[int]) -> Plan:
        """Nothing is left to plan; the dense plan of the result."""
        return self.result.dense_plan

    def bind(self, network: nn.Module) -> None:
        """Take hold of the network's layers and zero what is pruned.

        Raises:
            PlanError: the network lacks a layer, or has one of another shape.
        """
        for name, layout in self.layouts.items():
            module = layer_module(network, name) if has_layer(network, name) else None
            shape = matrix_shape(module)[:2] if isinstance(module, LAYERS) else None
            if shape != (layout.out_channels, layout.fan_in):
                raise PlanError(
                    f"the masks of {name} are for a weight of {layout.out_channels} outputs and "
                    f"{layout.fan_in} inputs, this network has {shape}: give the network that was "
                    "pruned, in Lightning with root=NAME of it inside the module"
                )
        super().bind(network)

    def begin(self) -> None:
        self.set_masks(self.result.masks)
        self.freeze()

    def phase_at(self, step: int) -> Phase:
        return Phase.FINETUNE

    def change_masks(self, step: int) -> None:
        """Nothing: they are frozen."""
