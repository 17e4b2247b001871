"""The masks of a network's layers, all together: what they leave, how much of them changes.

Layers are given as {name: layer under its mask}, in the order of the plan.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from crosspruner.errors import CheckpointError
from crosspruner.hardware import Plan
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.sparsity import GroupLayout


def masks_of(layers: Mapping[str, MaskedLayer]) -> dict[str, Tensor]:
    """Layer name -> (U, P) bool mask, on the CPU."""
    return {name: layer.mask.cpu() for name, layer in layers.items()}


def packed_plan(dense: Plan, layers: Mapping[str, MaskedLayer], grain: str) -> Plan:
    """The plan of what the masks leave of a dense one."""
    orders = {
        name: layer.layout.input_order
        for name, layer in layers.items()
        if layer.layout.input_order is not None
    }
    return dense.pruned(masks_of(layers), grain, orders)


def crossbars_left(dense: Plan, layers: Mapping[str, MaskedLayer]) -> int:
    """Compute crossbars that the masks leave of a dense plan, without building the packed one."""
    spared = sum(
        layer.layout.blocks * layer.layout.crossbars_per_block - layer.crossbars
        for layer in layers.values()
    )
    return dense.compute_crossbars - spared


def put_under(layers: Mapping[str, MaskedLayer], masks: Mapping[str, Tensor]) -> float:
    """Put the layers under new masks.

    Args:
        layers: changed in place, where their mask is another one.
        masks: {name: (U, P) bool} of some or all of them.

    Returns:
        The share of the groups of these masks that went or came back, 0 to 1.
    """
    changed = groups = 0
    for name, mask in masks.items():
        layer = layers[name]
        flipped = int((mask.to(layer.mask.device) != layer.mask).sum())
        if flipped:
            layer.set_mask(mask)
        changed += flipped
        groups += mask.numel()
    return changed / max(groups, 1)


def check_resumed(
    saved: Mapping[str, Any], layouts: Mapping[str, GroupLayout], grain: str, ratio: float
) -> None:
    """Refuse the state of another pruning than the one that would go on from it.

    Args:
        saved: what `Pruner.state_dict` gave.
        layouts: of the layers that this run prunes.
        grain: of this run.
        ratio: of this run.

    Raises:
        CheckpointError: the state is of another model, grain or ratio.
    """
    shapes = {n: tuple(s["mask"].shape) for n, s in saved["layers"].items()}
    ours = {name: layout.shape for name, layout in layouts.items()}
    if saved["grain"] != grain or shapes != ours:
        raise CheckpointError(
            f"the checkpoint was pruned at grain={saved['grain']} in the layers "
            f"{', '.join(f'{n} {s}' for n, s in shapes.items())}; this run has "
            f"grain={grain} and {', '.join(f'{n} {s}' for n, s in ours.items())}: resume "
            "with the model, crossbar, mapping and grain of that run"
        )
    if saved["ratio"] != ratio:
        raise CheckpointError(
            f"the checkpoint was pruned with ratio={saved['ratio']}, this run has "
            f"ratio={ratio}: resume with ratio={saved['ratio']}, or start a new run from "
            "its weights with model.weights=FILE"
        )
