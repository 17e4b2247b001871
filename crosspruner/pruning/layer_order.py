"""The choices of `reorder`: in which order a layer's input FMs are cut into input groups.

name        order
none        as they come
importance  by their energy at the outputs (Liang et al., IEEE Access 2018)
tetris      those gathered that the same outputs read (TETRIS, Ji et al., NeurIPS 2018)
best        of these three the one with which the pruned layer errs least (ours); as they come where
            the moments are cut, since each order cuts them elsewhere and errors are not comparable
"""

import torch
from torch import Tensor

from crosspruner.pruning.moments import Moments
from crosspruner.sparsity import GroupLayout
from crosspruner.sparsity.reorder import gather_order, importance_order

_ONE = ("none", "importance", "tetris")

REORDERS = (*_ONE, "best")


def orders_to_try(
    reorder: str,
    moments: Moments,
    weight: Tensor,
    weights: Tensor | None,
    blocks: int,
    layout: GroupLayout,
) -> list[Tensor | None]:
    """The orders among which a layer may choose, each once.

    Args:
        reorder: one of REORDERS.
        moments: of the layer, its input FMs as they come.
        weight: (Cout, fan_in, ...).
        weights: (Cout,) what a squared error of each output weighs; None = all alike.
        blocks: blocks of crossbars that will be kept.
        layout: the layer's groups.

    Returns:
        (G, fan_in) permutations, place -> FM, on the CPU; None for FMs as they come.
    """
    names: tuple[str, ...] = (reorder,)
    if reorder == "best":
        names = _ONE if moments.runs == 1 else ("none",)
    orders: list[Tensor | None] = []
    for name in names:
        order = _order(name, moments, weight, weights, blocks, layout)
        # Those of wide layers are alike.
        if order is None or not any(o is not None and torch.equal(order, o) for o in orders):
            orders.append(order)
    return orders


def _order(
    name: str,
    moments: Moments,
    weight: Tensor,
    weights: Tensor | None,
    blocks: int,
    layout: GroupLayout,
) -> Tensor | None:
    if name == "none":
        return None
    if name == "importance":
        return importance_order(moments.importance(weight, weights)).cpu()
    energy = moments.kernel_energy(weight)
    if weights is not None:
        energy = energy * weights.to(energy).unsqueeze(1)
    return gather_order(energy, blocks, layout)
