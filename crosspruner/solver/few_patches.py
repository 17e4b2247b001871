"""Refits among few patches instead of among many rows.

A layer that saw n patches X (n, d), n < d, has the moment X'X / n + r I. By Woodbury's identity
the weights that keep the rows S are

    w_S = (b_S - X_S' (n r I + X_S X_S')^-1 X_S b_S) / r

with one system of n rows, whichever S is: X_S X_S' is the sum of the products of the kept groups.
"""

from torch import Tensor

from crosspruner.solver.refined import solve_systems

# Systems of one batch hold at most this many entries (float64: 256 MB), the products of all groups
# twice as many.
_CHUNK_ENTRIES = 2**25


class FewPatches:
    """Refits among n patches.

    Args:
        patches: (n, d) float64, rows of equally large input groups one after the other.
        width: rows of an input group.
        pull: r, what is added to the diagonal of the moment, > 0.
    """

    def __init__(self, patches: Tensor, width: int, pull: float) -> None:
        self.patches, self.width, self.pull = patches, width, pull
        self.number = len(patches)
        by_group = patches.unflatten(1, (-1, width)).transpose(0, 1)
        self._products = (by_group @ by_group.mT).flatten(1)  # (p, n * n)

    @classmethod
    def of(cls, patches: Tensor | None, width: int, pull: float) -> "FewPatches | None":
        """None where the patches are not known, or their products would take too much memory."""
        if patches is None:
            return None
        entries = patches.shape[1] // width * len(patches) ** 2
        return None if entries > 2 * _CHUNK_ENTRIES else cls(patches, width, pull)

    def at_once(self, copies: int) -> int:
        """Supports of so many outputs each that are solved in one batch."""
        entries = 3 * self.number**2 + 4 * self.patches.shape[1] * copies
        return max(1, _CHUNK_ENTRIES // entries)

    def flops(self) -> float:
        """Operations of one support."""
        return self.number**2 * (self.number / 3 + 2 * len(self._products))

    def solve(self, support: Tensor, target: Tensor) -> Tensor:
        """The weights of several outputs for each support.

        Args:
            support: (s, p) bool, the groups kept.
            target: (d, s, c) float64, b of c outputs each.

        Returns:
            (d, s, c), zero where not kept.

        Raises:
            SolverError: the system is too close to singular.
        """
        kept = support.to(target.dtype).repeat_interleave(self.width, 1).unsqueeze(1)  # (s, 1, d)
        # As rows from the left: products with few columns take several times as long.
        rows = target.permute(1, 2, 0) * kept  # (s, c, d)
        seen = rows.flatten(0, 1) @ self.patches.T
        system = (kept[:, 0, :: self.width] @ self._products).view(-1, self.number, self.number)
        system.diagonal(dim1=1, dim2=2).add_(self.number * self.pull)
        explained = solve_systems(system, seen.view(*rows.shape[:2], -1).mT).mT
        back = (explained.flatten(0, 1) @ self.patches).view_as(rows)
        return ((rows - back * kept) / self.pull).permute(2, 0, 1)
