"""How many groups each problem of a layer keeps, when only their total is fixed.

Outputs differ in what they can do without: removals go where they cost least.
"""

import torch
from torch import Tensor


def rising_costs(costs: Tensor) -> Tensor:
    """Costs of successive removals, none below the ones before it.

    A removal is open only after those before it, so none may look cheaper than they.

    Args:
        costs: (B, P - 1) rise of the loss with each further removal (`Judge.removal_costs`).
    """
    return costs.cummax(1).values if costs.shape[1] else costs


def share_out(costs: Tensor, groups: int) -> Tensor:
    """How many groups each row keeps so that the removals cost least in total.

    Args:
        costs: (U, P - 1) rise of the loss with each further removal.
        groups: to keep in all, U..U * P.

    Returns:
        (U,) int64, 1..P each, sum `groups`.
    """
    units, removals = costs.shape
    order = torch.argsort(rising_costs(costs).flatten(), stable=True)[
        : units * (removals + 1) - groups
    ]
    removed = torch.bincount(order // removals, minlength=units)
    return removals + 1 - removed
