"""One level for each of several layers within one budget: the multiple-choice knapsack, exactly.

Source: dynamic programming over whole prices, as SPDY (Frantar and Alistarh, ICML 2022) does over
bucketed times; crossbars are whole numbers, so nothing is rounded here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crosspruner.errors import SolverError


def choose_levels(prices: Sequence[Tensor], losses: Sequence[Tensor], budget: int) -> list[int]:
    """The levels of least total loss that the budget can pay.

    Args:
        prices: per layer (J,) int64 >= 0, what each level costs.
        losses: per layer (J,) finite.
        budget: >= 0.

    Returns:
        A level of each layer.

    Raises:
        SolverError: not even the cheapest levels fit.
    """
    cheapest = sum(int(price.min()) for price in prices)
    if cheapest > budget:
        raise SolverError(f"the cheapest levels cost {cheapest}, the budget is {budget}")
    spent = torch.arange(budget + 1)
    best = torch.zeros(budget + 1, dtype=torch.float64)  # by what may be spent
    taken = []
    for price, loss in zip(prices, losses, strict=True):
        left = spent.unsqueeze(0) - price.unsqueeze(1)  # (J, F + 1)
        total = best[left.clamp(min=0)] + loss.double().unsqueeze(1)
        total = torch.where(left >= 0, total, torch.inf)
        best, level = total.min(dim=0)
        taken.append(level)
    levels, money = [], budget
    for level, price in zip(reversed(taken), reversed(list(prices)), strict=True):
        levels.append(int(level[money]))
        money -= int(price[levels[-1]])
    return levels[::-1]
