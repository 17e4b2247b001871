"""Sums of symmetric products of which only the lower half is multiplied."""

from torch import Tensor

# Rows of a second moment that are multiplied at once: few enough to leave out nearly half of the
# products, enough for fast ones.
_TILE = 512


def add_lower(total: Tensor, x: Tensor) -> None:
    """Add x x' of (B, d, n) to (B, d, d), but for tiles above the diagonal, see `mirror`."""
    for first in range(0, x.shape[1], _TILE):
        end = first + _TILE
        total[:, first:end, :end] += x[:, first:end] @ x[:, :end].mT


def mirror(total: Tensor) -> None:
    """Make the tiles above the diagonal those below it, in place."""
    for first in range(0, total.shape[1], _TILE):
        end = first + _TILE
        total[:, :first, first:end] = total[:, first:end, :first].mT
