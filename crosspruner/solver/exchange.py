"""Exchanges between the rows of a layer, which leave its number of crossbars as it is.

The solvers choose within each row how many groups it keeps being given. A layer's budget only
fixes sums over rows: at crossbar grain how many blocks all rows keep, at column grain how many
columns of each input group. So rows may trade: where row i prunes a kept group at the cost c and
row j revives a pruned one for the gain g, both counted in the same sum, the loss falls by g - c.
Rows do not know of each other, so any exchanges that change each row once add up exactly.

Source: ours.
"""

import torch
from torch import Tensor

from crosspruner.solver.judge import Judge

ROUNDS = 40
"""Rounds of trades at most; most layers are done after ten to twenty."""

FEW_ROUNDS = 2
"""Where a judge does not last."""

LEAST_GAIN = 1e-5
"""A gain below this share of a row's mean loss is none."""


def exchange(judge: Judge, mask: Tensor, pool: Tensor) -> Tensor:
    """Trade groups between rows until no trade lowers the loss of the layer.

    Args:
        judge: of the layer.
        mask: (U, P) bool, no row empty.
        pool: (U, P) int64, the sum that each group is counted in; equally many rows have groups in
            each, equally many each.

    Returns:
        (U, P) bool with as many marks in each pool, no row empty, never a higher loss.
    """
    members = _members(pool)
    best, least = mask, judge.loss(mask).sum()
    for _ in range(ROUNDS if judge.lasting else FEW_ROUNDS):
        worth = judge.worth(mask)
        spare = mask & (mask.sum(1, keepdim=True) > 1)
        out = _ranked(worth.masked_fill(~spare, torch.inf), members)
        into = _ranked((-worth).masked_fill(mask, torch.inf), members)
        # The cheapest of a pool for the most valuable, the next for the next, and so on; where
        # both are of one row, each for the one behind the other.
        out, into = (
            torch.cat([side.flatten(), first.flatten(), second.flatten()])
            for side, first, second in (
                (out, out[:, :-1], out[:, 1:]),
                (into, into[:, 1:], into[:, :-1]),
            )
        )
        worth = worth.flatten()
        profit = worth[into] - worth[out]
        gains = spare.flatten()[out] & ~mask.flatten()[into]
        gains &= profit > LEAST_GAIN * least.abs() / len(mask)
        order = profit[gains].argsort(descending=True, stable=True)
        out, into = _apart(out[gains][order], into[gains][order], mask.shape[1])
        mask = mask.flatten()
        mask[out], mask[into] = False, True
        mask = mask.view_as(best)
        loss = judge.loss(mask).sum()
        if not loss < least:  # nothing was traded, or what seemed a gain was rounding
            break
        best, least = mask, loss
    return best


def _members(pool: Tensor) -> Tensor:
    """(pools, rows of each, groups of each row) flat positions of the groups of each pool."""
    pools = pool.flatten()
    row = torch.arange(len(pool), device=pool.device).repeat_interleave(pool.shape[1])
    owner = pools * len(pool) + row
    owners = len(owner.unique())
    return owner.argsort(stable=True).view(int(pools.max()) + 1, -1, len(owner) // owners)


def _ranked(values: Tensor, members: Tensor) -> Tensor:
    """(pools, rows of each) flat positions of each row's least value in a pool, least first."""
    least, group = values.flatten()[members].min(2)
    order = least.argsort(dim=1, stable=True)
    own = members.gather(2, group.unsqueeze(2)).squeeze(2)
    return own.gather(1, order)


def _apart(out: Tensor, into: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Of trades (n,) by flat positions, the best first, some that change no row twice.

    The best one is among them, and each that shares its rows with no better one that is left.
    """
    chosen: list[tuple[Tensor, Tensor]] = []
    left = out // groups != into // groups
    while bool(left.any()):
        out, into = out[left], into[left]
        giving, taking = out // groups, into // groups
        place = torch.arange(len(out), device=out.device)
        rows = torch.full((int(torch.maximum(giving, taking).max()) + 1,), len(out)).to(place)
        rows = rows.scatter_reduce(0, giving, place, "amin")
        rows = rows.scatter_reduce(0, taking, place, "amin")
        best = (rows[giving] == place) & (rows[taking] == place)
        chosen.append((out[best], into[best]))
        used = torch.zeros_like(rows, dtype=torch.bool)
        used[giving[best]] = used[taking[best]] = True
        left = ~used[giving] & ~used[taking]
    if not chosen:
        return out[:0], into[:0]
    return torch.cat([o for o, _ in chosen]), torch.cat([i for _, i in chosen])
