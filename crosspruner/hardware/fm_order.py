"""How feature maps are numbered: by their place, within their conv group, over all conv groups."""

import torch
from torch import Tensor

from crosspruner.errors import PlanError
from crosspruner.hardware.geometry import LayerGeometry


def fms_at_places(order: Tensor | None, groups: int, fms: int) -> Tensor:
    """The FM, numbered over all conv groups, at each place: (groups, fms) int64.

    Args:
        order: (groups, fms) int64, numbered within each conv group; None = each at its own place.
        groups: conv groups.
        fms: of one conv group.
    """
    first = torch.arange(groups)[:, None] * fms
    return first + (torch.arange(fms) if order is None else order)


def local_inputs(geometry: LayerGeometry, fms: Tensor, outs: Tensor) -> Tensor:
    """Which weight of its output the cell of an input and an output FM holds.

    Args:
        geometry: the layer's shapes.
        fms: int64, input FMs numbered over all conv groups; -1 = none.
        outs: int64, output FMs likewise; the two broadcast against each other.

    Returns:
        The input FM numbered within its conv group; Cin / G where the cell holds none: nothing
        there, or two conv groups of a bundle meet.
    """
    none = geometry.group_inputs
    same = fms // none == outs // geometry.group_outputs
    return torch.where((fms >= 0) & (outs >= 0) & same, fms % none, none)


def checked_order(name: str, side: str, order: Tensor, groups: int, fms: int) -> Tensor:
    """A copy of the order, which must be a permutation per conv group: (groups, fms)."""
    order = order.detach().cpu()
    if tuple(order.shape) != (groups, fms) or not bool(
        (order.sort(1).values == torch.arange(fms)).all()
    ):
        raise PlanError(
            f"{name}: the {side} order must be a permutation of 0..{fms - 1} for each of "
            f"{groups} conv groups, shape ({groups}, {fms}); its shape is {tuple(order.shape)}."
        )
    return order.long().clone()
