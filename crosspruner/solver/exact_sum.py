"""The cheapest items whose sizes add up as near to a target as any items do, exactly.

Taking items by price per size until the next one would pass the target is the best choice for the
sum that it reaches, which falls short by less than the largest size U. The best choice for the
nearest sum is close to it: among many exchanges some cancel out, and then do no good. So no size
loses more than U items, or gains more than U beyond those that what is missing has room for.
Dynamic programming over so few, the coarsest sizes first, is exact and as fast for a million items
as for a thousand. What costs time is large sizes with no common divisor: some seconds from a
thousand on, half a minute at 2,700.

Source: proximity of relaxed and whole optima (Eisenbrand and Weismantel, ACM Transactions on
Algorithms 2020), here for costs that rise from item to item; the order of the programme is ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Size:
    """All items of one size, the cheapest first; what they cost beside those that are taken."""

    size: int
    items: Tensor
    taken: int
    spent: Tensor
    """(n + 1,) cost of the first n items less that of the taken ones."""
    fewer: int
    more: int
    """Items less and more than `taken` that are looked at."""


def choose_counts(costs: Sequence[Tensor], sizes: Tensor, target: float) -> Tensor:
    """How many items of each kind to take.

    Args:
        costs: per kind (n,) finite, what its first, second, ... item costs; never falling. Where
            they fall, the sum is still the nearest, but need not be the cheapest.
        sizes: (L,) int64 >= 1, of an item of each kind.
        target: what the sizes of the items should add up to.

    Returns:
        (L,) int64. No other counts add up nearer to the target, and none of the same distance from
        it cost less.
    """
    unit = math.gcd(*sizes.tolist())
    sizes, target = sizes // unit, target / unit
    kind = torch.arange(len(sizes)).repeat_interleave(torch.tensor([len(c) for c in costs]))
    cost = torch.cat([c.double().cpu() for c in costs])
    order = torch.argsort(cost / sizes[kind], stable=True)
    reached = sizes[kind[order]].cumsum(0)
    first = int((reached <= target).sum())
    short = target - (int(reached[first - 1]) if first else 0)
    span = math.floor(2 * short + 1e-6)  # the nearest sum lies no further beyond the target
    if first == len(order) or span < 1:
        return torch.bincount(kind[order[:first]], minlength=len(sizes))
    groups = _by_size(order, sizes[kind], cost, first, span)
    changes = _exchanges(groups, short, span)
    taken = [g.items[: g.taken + change] for g, change in zip(groups, changes, strict=True)]
    return torch.bincount(kind[torch.cat(taken)], minlength=len(sizes))


def _by_size(order: Tensor, size: Tensor, cost: Tensor, first: int, span: int) -> list[_Size]:
    """The items of each size, the coarsest first."""
    groups = []
    largest = int(size.max())
    for one in size.unique().flip(0).tolist():
        mine = size[order] == one
        items = order[mine]
        taken = int(mine[:first].sum())
        spent = torch.cat([cost.new_zeros(1), cost[items].cumsum(0)])
        more = min(len(items) - taken, largest + span // one)
        groups.append(_Size(one, items, taken, spent - spent[taken], min(taken, largest), more))
    return groups


def _exchanges(groups: Sequence[_Size], short: float, span: int) -> list[int]:
    """Items that each size gains (or loses: negative) for the sum nearest to `short`."""
    step, start = 0, 0  # the sums are start, start + step, ...
    best = torch.zeros(1, dtype=torch.float64)
    stages = []
    for at, group in enumerate(groups):
        rest = groups[at + 1 :]
        wide = math.gcd(step, group.size)
        # Sums from which the sizes to come cannot return to 0..span are left out.
        low = max(start - group.fewer * group.size, -sum(g.more * g.size for g in rest))
        high = start + (len(best) - 1) * step + group.more * group.size
        high = min(high, span + sum(g.fewer * g.size for g in rest))
        low = -(-low // wide) * wide
        length = max((high - low) // wide + 1, 1)
        total = torch.full((length,), torch.inf, dtype=torch.float64)
        change = torch.zeros(length, dtype=torch.int32)
        stride = max(step // wide, 1)
        for n in range(-group.fewer, group.more + 1):
            place = (start + n * group.size - low) // wide  # of the first of the sums so far
            skip = max(-(place // stride), 0)
            place += skip * stride
            count = min(len(best) - skip, (length - 1 - place) // stride + 1)
            if count < 1:
                continue
            seen = slice(place, place + (count - 1) * stride + 1, stride)
            offer = best[skip : skip + count] + group.spent[group.taken + n]
            better = offer < total[seen]
            total[seen] = torch.where(better, offer, total[seen])
            change[seen] = torch.where(better, n, change[seen])
        stages.append((low, wide, change))
        best, start, step = total, low, wide
    sums = start + step * torch.arange(len(best))
    distance = torch.where(best.isfinite(), (sums - short).abs(), torch.inf)
    level = distance <= distance.min() + 1e-6
    at = int(torch.where(level, best, torch.inf).argmin())
    left, changes = int(sums[at]), []
    for group, (low, wide, change) in zip(reversed(groups), reversed(stages), strict=True):
        changes.append(int(change[(left - low) // wide]))
        left -= changes[-1] * group.size
    return changes[::-1]
