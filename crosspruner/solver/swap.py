"""Pairwise swaps on the Gram form: prune a kept group, revive a pruned one, while the loss falls.

With r = G beta - h, exchanging the kept group a for the pruned group b changes the loss by

    (G_aa - 2 r_a) + (G_bb + 2 r_b) - 2 G_ab

so the best of all exchanges is one minimum over a kept x pruned table. The table's third term is
kept as a compact block per problem and mended by one row and one column after each swap.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

# One chunk of the batch holds at most this many table entries (float64: 256 MB).
_CHUNK_ENTRIES = 2**25


def swap_descent(
    gram: Tensor, linear: Tensor, mask: Tensor, max_swaps: int | None = None
) -> Tensor:
    """Make the best single swap again and again until none lowers the loss.

    Args:
        gram: (B, P, P) float64, symmetric.
        linear: (B, P) float64, the h of L = beta' G beta - 2 h' beta + c.
        mask: (B, P) bool, the masks to start from, or (B, R, P), R of them per problem; they may
            keep different numbers of groups.
        max_swaps: stop a mask after this many swaps; None: only at a local optimum.

    Returns:
        bool, shape of `mask`, with as many True per row, never a higher loss.
    """
    batch, groups = linear.shape
    masks = mask if mask.ndim == 3 else mask.unsqueeze(1)
    residual = (masks.to(gram.dtype) @ gram - linear.unsqueeze(1)).flatten(0, 1)
    problem = torch.arange(batch, device=mask.device).repeat_interleave(masks.shape[1])
    masks = masks.flatten(0, 1).clone()
    rows = max(1, _CHUNK_ENTRIES // max(1, groups * groups // 4))
    for start in range(0, len(masks), rows):
        part = slice(start, start + rows)
        masks[part] = _descend(gram, problem[part], residual[part], masks[part], max_swaps)
    return masks.view_as(mask)


def gram_loss(gram: Tensor, linear: Tensor, mask: Tensor) -> Tensor:
    """The loss without its constant, beta' G beta - 2 h' beta.

    Args:
        gram: (B, P, P). linear: (B, P). mask: (B, P) bool or float, or (B, R, P) for R masks each.

    Returns:
        (B,) or (B, R), dtype of `gram`.
    """
    beta = mask.to(gram.dtype)
    if beta.ndim == 2:
        return gram_loss(gram, linear, beta.unsqueeze(1)).squeeze(1)
    return ((beta @ gram - 2 * linear.unsqueeze(1)) * beta).sum(-1)


@dataclass
class _Table:
    """The swap search of B masks; every field has one entry per mask."""

    index: Tensor  # (B,) number of the mask
    problem: Tensor  # (B,) its row of the Gram matrices
    own: Tensor  # (B, P) G_aa
    residual: Tensor  # (B, P) G beta - h
    kept: Tensor  # (B, K) group numbers; rows that keep fewer are padded
    kept_valid: Tensor  # (B, K)
    pruned: Tensor  # (B, N) likewise
    pruned_valid: Tensor  # (B, N)
    cross: Tensor  # (B, K, N) G[kept, pruned]
    tolerance: Tensor  # (B,) smaller gains are rounding: two swaps could undo each other for ever

    def select(self, rows: Tensor) -> "_Table":
        return _Table(*(getattr(self, field.name)[rows] for field in fields(self)))

    def best_swap(self) -> tuple[Tensor, Tensor, Tensor]:
        """Change of the loss (B,) and the kept and pruned slot (B,) of each row's best swap."""
        out = (self.own - 2 * self.residual).gather(1, self.kept)
        into = (self.own + 2 * self.residual).gather(1, self.pruned)
        out.masked_fill_(~self.kept_valid, torch.inf)
        into.masked_fill_(~self.pruned_valid, torch.inf)
        change = torch.add(out.unsqueeze(2), self.cross, alpha=-2).add_(into.unsqueeze(1))
        best, slot = change.flatten(1).min(1)
        return best, slot // change.shape[2], slot % change.shape[2]

    def swap(self, gram: Tensor, kept_slot: Tensor, pruned_slot: Tensor) -> None:
        """Exchange the two slots (B,) of every row, in place."""
        row = torch.arange(len(self.index), device=self.index.device)
        leaving, entering = self.kept[row, kept_slot], self.pruned[row, pruned_slot]
        self.kept[row, kept_slot], self.pruned[row, pruned_slot] = entering, leaving
        gone, come = gram[self.problem, leaving], gram[self.problem, entering]
        self.residual += come - gone
        self.cross[row, kept_slot] = come.gather(1, self.pruned)
        self.cross[row, :, pruned_slot] = gone.gather(1, self.kept)


def _descend(
    gram: Tensor, problem: Tensor, residual: Tensor, mask: Tensor, max_swaps: int | None
) -> Tensor:
    mask = mask.clone()
    num_kept = mask.sum(1)
    table = _start(gram, problem, residual, mask)
    # A row without kept or without pruned groups has nothing to swap.
    table = table.select(((num_kept > 0) & (num_kept < mask.shape[1])).nonzero().squeeze(1))
    swaps = 0
    while len(table.index) and (max_swaps is None or swaps < max_swaps):
        change, kept_slot, pruned_slot = table.best_swap()
        rows = (change < -table.tolerance).nonzero().squeeze(1)
        if len(rows) < len(table.index):
            # Rows at their optimum leave: the last few would else cost as much as all.
            table = table.select(rows)
            kept_slot, pruned_slot = kept_slot[rows], pruned_slot[rows]
        row = table.index
        mask[row, table.kept.gather(1, kept_slot[:, None]).squeeze(1)] = False
        mask[row, table.pruned.gather(1, pruned_slot[:, None]).squeeze(1)] = True
        table.swap(gram, kept_slot, pruned_slot)
        swaps += 1
    return mask


def _start(gram: Tensor, problem: Tensor, residual: Tensor, mask: Tensor) -> _Table:
    batch, groups = mask.shape
    num_kept = mask.sum(1, keepdim=True)
    order = mask.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    kept = order[:, : int(num_kept.max())].clone()
    pruned = order[:, int(num_kept.min()) :].clone()
    slot = torch.arange(groups, device=mask.device)
    own = gram.diagonal(dim1=1, dim2=2)
    return _Table(
        index=torch.arange(batch, device=mask.device),
        problem=problem,
        own=own[problem],
        residual=residual,
        kept=kept,
        kept_valid=slot[: kept.shape[1]] < num_kept,
        pruned=pruned,
        pruned_valid=slot[groups - pruned.shape[1] :] >= num_kept,
        cross=gram[problem[:, None, None], kept[:, :, None], pruned[:, None, :]],
        # An h far above G leaves the residual few digits for what a swap changes.
        tolerance=1e-12 * groups * own.abs().amax(1)[problem] + 1e-14 * residual.abs().amax(1),
    )
