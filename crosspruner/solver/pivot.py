"""Exact refitted losses of many masks, moved from one to the next by block pivots.

Sweeping the normal equations H V = T on the kept rows S turns them into a table that holds all
there is to know about S (A = H_SS^-1, V = A T_S):

              kept            pruned              target
    kept      -A              A H_SP              V   refitted weights
    pruned    H_PS A          H_PP - H_PS A H_SP  r = T_P - H_PS V   unexplained correlation

Toggling group g, kept or pruned, is one pivot on its d x d block; no factorisation is ever redone.
With K the block of g and u its rows of the target, u' |K|^-1 u is the rise of the loss on pruning
a kept group (tr V_g' (A_gg)^-1 V_g) and its fall on reviving a pruned one (tr r_g' C_g^-1 r_g).

Source: the sweep operator (Goodnight, The American Statistician 1979) by blocks; the pruning cost
is that of group OBS (Hassibi and Stork, NeurIPS 1992; OSSCAR, ICML 2024).
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.factor import cholesky
from crosspruner.solver.refit import RefitProblem
from crosspruner.solver.side_by_side import part_size
from crosspruner.solver.supports import CHUNK_ENTRIES

Answer = TypeVar("Answer")

TABLE_ENTRIES = 2**21
"""The tables of one part of a batch hold at most this many entries (float32: 8 MB): few enough to
stay in the processor's cache from one pivot to the next, enough that calls do not take longer than
what they do. One table may hold more."""

GPU_TABLE_ENTRIES = 2**28
"""The same on a GPU (float64: 2 GB), where what counts is that one kernel serves many problems."""

FEW = 4
"""Tables are taken out of a batch and put back where they are less than one in so many; else it
takes less time to subtract nothing from the others."""

MOST_INFLATION = 1e4
"""Variance inflation up to which tables may be in float32: it leaves three of seven digits."""


def table_entries(problem: RefitProblem, rank: int | None = None) -> int:
    """Entries of the pivot table of one problem, or of its stand-in of `rank` rows per group."""
    rows = problem.num_groups * (problem.group_size if rank is None else rank)
    return rows * (rows + problem.target.shape[2])


def batch_parts(problem: RefitProblem, rank: int | None = None) -> list[slice]:
    """Slices of the batch whose pivot tables, or those of stand-ins, are worked on together."""
    own = 0 if problem.shared else problem.moment.numel()
    if own <= CHUNK_ENTRIES:
        _ = problem.inverse  # now, so that the parts need not each make it, nor who asks again
    entries = TABLE_ENTRIES if problem.target.device.type == "cpu" else GPU_TABLE_ENTRIES
    most = max(1, entries // max(1, table_entries(problem, rank)))
    chunk = part_size(problem.num_problems, most)
    return [slice(i, i + chunk) for i in range(0, problem.num_problems, chunk)]


class PivotTable:
    """The swept normal equations of a batch of problems, at one mask per problem.

    Attributes:
        mask: (B, P) bool, the groups kept now.
        loss: (B,) float64, the refitted loss of `mask`.
    """

    def __init__(self, problem: RefitProblem, dtype: torch.dtype = torch.float64) -> None:
        """Start with all groups kept.

        Args:
            problem: the normal equations.
            dtype: of the table. In float32 pivots take half the time; losses lose digits with each
                of them, enough are left to choose by.

        Raises:
            SolverError: the moment is too close to singular for a table in float32.
        """
        self.groups, self.height = problem.num_groups, problem.group_size
        batch, size, self._num_targets = problem.target.shape
        inverse, weights = problem.inverse, problem.inverse_times(problem.target)
        if dtype == torch.float32:
            _check_digits(problem.moment, inverse)
        # The target rides along as extra columns: one product updates both.
        table = weights.new_empty(batch, size, size + self._num_targets, dtype=dtype)
        table[:, :, :size] = -inverse
        table[:, :, size:] = weights
        self._table = table
        self._constant = problem.constant
        self.loss = problem.constant - (problem.target * weights).sum((1, 2))
        self.mask = torch.ones(batch, self.groups, dtype=torch.bool, device=weights.device)
        self._worth = self.loss.new_zeros(batch, self.groups)
        self._stale = torch.ones_like(self.mask[:, 0])  # rows toggled since their scores were made

    def scores(self, rows: Tensor | None = None) -> Tensor:
        """What each group is worth at the present mask, >= 0.

        Args:
            rows: (b,) int64, the problems asked for; None: all.

        Returns:
            (b, P) float64: rise of the loss on pruning a kept group, fall on reviving a pruned one.
        """
        rows = self._rows(rows)
        stale = rows[self._stale[rows]]
        if len(stale):
            every = torch.arange(self.groups, device=rows.device)
            blocks = self._blocks()[stale[:, None], every, :, every]
            factors = cholesky(blocks * self._sign(self.mask[stale]))
            self._worth[stale] = _gain(factors, self._targets()[stale]).double()
            self._stale[stale] = False
        return self._worth[rows]

    def toggle(self, group: Tensor, rows: Tensor | None = None) -> None:
        """Prune a kept group or revive a pruned one.

        Args:
            group: (b,) int64, the group of each row.
            rows: (b,) int64, the problems to change; None: all, in order.
        """
        rows = self._rows(rows)
        if not len(rows):
            return
        size = self.groups * self.height
        by_group = self._table.unflatten(1, (self.groups, self.height))
        square = self._blocks()
        pivot = by_group[rows, group]
        sign = self._sign(self.mask[rows, group])
        inverse = sign * torch.cholesky_inverse(cholesky(sign * square[rows, group, :, group]))
        scaled = inverse @ pivot
        targets = pivot[:, :, size:]
        self.loss[rows] -= (targets * scaled[:, :, size:]).sum((1, 2))

        self._subtract(pivot[:, :, :size].mT, scaled, rows)
        scaled = sign * scaled
        by_group[rows, group] = scaled
        columns = scaled[:, :, :size].unflatten(2, (self.groups, self.height))
        square[rows, :, :, group] = columns.permute(0, 2, 3, 1)
        square[rows, group, :, group] = -inverse
        self.mask[rows, group] ^= True
        self._stale[rows] = True

    def _subtract(self, left: Tensor, right: Tensor, rows: Tensor) -> None:
        """Take left @ right (b, D, D + n) from the tables of some problems (b,)."""
        if FEW * len(rows) < len(self._table):
            self._table[rows] = torch.baddbmm(self._table[rows], left, right, alpha=-1)
            return
        every = left.new_zeros(len(self._table), *left.shape[1:])
        every[rows] = left
        theirs = right.new_zeros(len(self._table), *right.shape[1:])
        theirs[rows] = right
        self._table.baddbmm_(every, theirs, alpha=-1)

    def move_to(self, mask: Tensor) -> None:
        """Toggle groups until the table stands at `mask` (B, P)."""
        while True:
            different = self.mask ^ mask
            rows = different.any(1).nonzero().squeeze(1)
            if not len(rows):
                return
            group = different[rows].to(torch.uint8).argmax(1)
            self.toggle(group, rows)

    def eliminate(self, keep: Tensor) -> None:
        """Prune the cheapest kept group, one after another, down to `keep` (B,)."""
        while True:
            rows = (self.mask.sum(1) > keep).nonzero().squeeze(1)
            if not len(rows):
                return
            worth = self.scores(rows).masked_fill(~self.mask[rows], torch.inf)
            self.toggle(worth.argmin(1), rows)

    def best_swap(
        self, shortlist: int, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best exchange of a kept for a pruned group, with the loss after refitting both ways.

        Args:
            shortlist: consider the cheapest kept and the most valuable pruned groups, this many
                of each; the loss of each pair is exact.
            rows: (b,) int64, the problems asked for; None: all.

        Returns:
            change of the loss (b,), +inf where nothing can be exchanged, and the kept and the
            pruned group (b,).
        """
        rows = self._rows(rows)
        mask, worth = self.mask[rows], self.scores(rows)
        number = mask.sum(1)
        most = int(number.max()), self.groups - int(number.min())
        many = [max(1, min(shortlist, one)) for one in most]
        kept = worth.masked_fill(~mask, torch.inf).topk(many[0], 1, largest=False)
        pruned = worth.masked_fill(mask, -torch.inf).topk(many[1], 1)
        blocks, targets = self._blocks(), self._targets()
        k, p, row = kept.indices, pruned.indices, rows.unsqueeze(1)
        # After pruning k the block and the target of p become C_p + F' F and r_p + F' v.
        factor = cholesky(self._sign(self.mask[row, k]) * blocks[row, k, :, k])
        link = blocks[row.unsqueeze(2), k.unsqueeze(2), :, p.unsqueeze(1)]
        link = torch.linalg.solve_triangular(factor.unsqueeze(2), link, upper=False)
        weights = torch.linalg.solve_triangular(factor, targets[row, k], upper=False)
        block = (self._sign(self.mask[row, p]) * blocks[row, p, :, p]).unsqueeze(1)
        block = block + link.mT @ link
        target = targets[row, p].unsqueeze(1) + link.mT @ weights.unsqueeze(2)
        change = kept.values.unsqueeze(2) - _gain(cholesky(block), target)
        change = change.masked_fill(pruned.values.isinf().unsqueeze(1), torch.inf)
        best, pair = change.flatten(1).min(1)
        column = torch.arange(len(rows), device=rows.device)
        return best, k[column, pair // many[1]], p[column, pair % many[1]]

    def descend(self, shortlist: int = 8, thorough: bool = True) -> None:
        """Make the best swap again and again until none lowers the loss.

        Args:
            shortlist: serves a row until it runs dry.
            thorough: try all pairs then; else the row is done.
        """
        # Below this a gain is rounding: two swaps could undo each other for ever.
        exact = self._table.dtype == torch.float64
        tolerance = (1e-9 if exact else 1e-5) * self.loss.abs()
        tolerance += (1e-13 if exact else 1e-8) * self._constant
        narrow = self._rows(None)
        wide = narrow[:0]
        while len(narrow) or len(wide):
            rows, width = (narrow, shortlist) if len(narrow) else (wide, self.groups)
            change, kept, pruned = self.best_swap(width, rows)
            better = change < -tolerance[rows]
            improved, before = rows[better], self.loss[rows[better]]
            kept, pruned = kept[better], pruned[better]
            self.toggle(kept, improved)
            self.toggle(pruned, improved)
            # In float32 a gain may turn out to be none: back, and done with these pairs.
            worse = self.loss[improved] >= before
            self.toggle(pruned[worse], improved[worse])
            self.toggle(kept[worse], improved[worse])
            dry = torch.cat([wide, rows[~better], improved[worse]])
            narrow, wide = improved[~worse], dry if thorough and len(narrow) else wide[:0]

    def _rows(self, rows: Tensor | None) -> Tensor:
        return torch.arange(len(self.mask), device=self.mask.device) if rows is None else rows

    def _sign(self, kept: Tensor) -> Tensor:
        """-1 for kept, 1 for pruned groups, which makes their blocks positive definite."""
        return torch.where(kept, -1.0, 1.0).to(self._table.dtype)[..., None, None]

    def _blocks(self) -> Tensor:
        """(B, P, d, P, d) view of the square part."""
        shape = (len(self._table), self.groups, self.height, self.groups, self.height)
        square = self._table[:, :, : self.groups * self.height]
        return square.unflatten(2, shape[3:]).unflatten(1, shape[1:3])

    def _targets(self) -> Tensor:
        """(B, P, d, n) view of the target columns."""
        return self._table[:, :, self.groups * self.height :].unflatten(
            1, (self.groups, self.height)
        )


def on_a_table(problem: RefitProblem, work: Callable[[PivotTable], Answer]) -> Answer:
    """What `work` returns on a fresh table of a problem: in float32, or where that is too close to
    singular anew in float64.

    Raises:
        SolverError: float64 is too coarse as well.
    """
    try:
        return work(PivotTable(problem, torch.float32))
    except SolverError:
        return work(PivotTable(problem, torch.float64))


def _check_digits(moment: Tensor, inverse: Tensor) -> None:
    """Raise SolverError where rows are all but told by the others, which float32 cannot follow.

    H_ii (H^-1)_ii is one over the share of row i that the other rows do not explain: its variance
    inflation factor.
    """
    inflation = moment.diagonal(dim1=-2, dim2=-1) * inverse.diagonal(dim1=-2, dim2=-1)
    if not bool((inflation <= MOST_INFLATION).all()):
        raise SolverError("the moment is too close to singular for float32; use float64")


def _gain(factor: Tensor, target: Tensor) -> Tensor:
    """tr(u' (L L')^-1 u) for factors L (..., d, d) and targets u (..., d, n). Returns (...)."""
    return torch.linalg.solve_triangular(factor, target, upper=False).square().sum((-2, -1))
