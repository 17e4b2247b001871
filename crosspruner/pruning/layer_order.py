"""The choices of `reorder`: in which order a layer's input FMs are cut into input groups.

name        order
none        as they come
importance  by their energy at the outputs (Liang et al., IEEE Access 2018)
tetris      those gathered that the same outputs read (TETRIS, Ji et al., NeurIPS 2018)
linear      by importance in linear layers, as they come in convolutions (ours)
best        of these four the one after which the network's answers have changed least
            (`order_search`)

An order lets a layer err less by itself. But then all outputs go without the same FMs and err on
the same images; outputs that each go without other FMs make up for each other in the layers behind
(docs/measurements.md).
"""

from torch import Tensor, nn

from crosspruner.pruning.moments import Moments
from crosspruner.sparsity import GroupLayout
from crosspruner.sparsity.reorder import gather_order, importance_order

ORDERS = ("none", "importance", "tetris", "linear")

REORDERS = (*ORDERS, "best")


def input_order(
    reorder: str,
    module: nn.Module,
    moments: Moments,
    weight: Tensor,
    weights: Tensor | None,
    blocks: int,
    layout: GroupLayout,
) -> Tensor | None:
    """The order of a layer's input FMs.

    Args:
        reorder: one of ORDERS.
        module: the layer.
        moments: of the layer, its input FMs as they come.
        weight: (Cout, fan_in, ...).
        weights: (Cout,) what a squared error of each output weighs; None = all alike.
        blocks: blocks of crossbars that will be kept.
        layout: the layer's groups.

    Returns:
        (G, fan_in) permutation, place -> FM, on the CPU; None for FMs as they come.
    """
    if reorder == "none" or (reorder == "linear" and not isinstance(module, nn.Linear)):
        return None
    if reorder in ("importance", "linear"):
        return importance_order(moments.importance(weight, weights)).cpu()
    energy = moments.kernel_energy(weight)
    if weights is not None:
        energy = energy * weights.to(energy).unsqueeze(1)
    return gather_order(energy, blocks, layout)
