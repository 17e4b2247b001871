"""Which items to keep when they have prices: the dual of a 0-1 programme, by golden section.

    max  sum v_i z_i    s.t.  sum f_i z_i <= F,  sum z_i <= S,  z_i in {0, 1}

Its linear relaxation has the dual  D(m) = F m + S w + sum max(v_i - m f_i - w, 0)  with w the S-th
largest of max(v_i - m f_i, 0): convex in the one multiplier m, the price of a unit of F. At the
best m the items are taken in the order of v_i - m f_i as long as they fit.

Source: FALCON (Meng, Chen, Benbaki, Mazumder, AISTATS 2024, arXiv 2403.07094), whose prices are
FLOPs; ours are crossbars.
"""

import torch
from torch import Tensor

from crosspruner.errors import SolverError

_GOLDEN = (5**0.5 - 1) / 2


def dual_value(
    values: Tensor, prices: Tensor, budget: float, multiplier: float, count: int | None = None
) -> float:
    """D(multiplier): an upper bound on what any feasible choice is worth.

    Args:
        values: (n,) >= 0.
        prices: (n,) > 0.
        budget: F >= 0.
        multiplier: m >= 0.
        count: S >= 0; None = no limit on the number of items.
    """
    left = (values - multiplier * prices).clamp(min=0)
    if count is None or count >= len(values):
        return float(budget * multiplier + left.sum())
    worth = left.sort(descending=True).values[count]
    return float(budget * multiplier + count * worth + (left - worth).clamp(min=0).sum())


def best_multiplier(
    values: Tensor, prices: Tensor, budget: float, count: int | None = None
) -> float:
    """The m that makes D(m) least: by golden section, to 1e-12 of its range, where the number of
    items is limited; else where the items, best worth for the price first, no longer fit."""
    if count is None or count >= len(values):
        worth, order = (values / prices).sort(descending=True, stable=True)
        over = (prices[order].cumsum(0) > budget).nonzero()
        return float(worth[over[0, 0]]) if len(over) else 0.0
    low, high = 0.0, float((values / prices).max())
    tolerance = 1e-12 * max(high, torch.finfo(values.dtype).tiny)
    first, second = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at = [dual_value(values, prices, budget, m, count) for m in (first, second)]
    while high - low > tolerance:
        if at[0] <= at[1]:
            high, second, at[1] = second, first, at[0]
            first = high - _GOLDEN * (high - low)
            at[0] = dual_value(values, prices, budget, first, count)
        else:
            low, first, at[0] = first, second, at[1]
            second = low + _GOLDEN * (high - low)
            at[1] = dual_value(values, prices, budget, second, count)
        if not low < first < second < high:
            break  # the range is down to neighbouring numbers
    return (low + high) / 2


def choose_by_price(
    values: Tensor, prices: Tensor, budget: float, count: int | None = None
) -> Tensor:
    """Items worth most within a budget, up to one item from the linear relaxation.

    Args:
        values: (n,) >= 0, finite.
        prices: (n,) > 0.
        budget: F >= 0, what the items chosen may cost together.
        count: S, how many may be chosen; None = any number.

    Returns:
        (n,) bool, feasible. Its worth is less than the relaxation's by at most the largest value
        among the items within the price of one item of the budget.

    Raises:
        SolverError: a value or a price is out of range.
    """
    values, prices = values.double(), prices.double()
    if not (bool(values.isfinite().all()) and bool((values >= 0).all() & (prices > 0).all())):
        raise SolverError("values must be finite and 0 or more, prices above 0")
    chosen = torch.zeros(len(values), dtype=torch.bool)
    if not len(values) or budget <= 0:
        return chosen
    multiplier = best_multiplier(values, prices, budget, count)
    # Items level at the multiplier are taken by worth for the price.
    worth = values / prices
    order = torch.argsort(worth, descending=True, stable=True)
    surplus = values - multiplier * prices
    surplus[surplus.abs() <= 1e-9 * values.max()] = 0.0
    order = order[torch.argsort(surplus[order], descending=True, stable=True)]
    fits = prices[order].cumsum(0) <= budget + 1e-9
    fits &= torch.arange(len(order)) < (len(order) if count is None else count)
    chosen[order[fits]] = True
    return chosen
