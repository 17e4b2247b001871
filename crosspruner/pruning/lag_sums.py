"""Sums of the products of a convolution's patches, over all positions, by lags.

Two rows of a patch, FM c at the kernel place k and FM c' at k', read pixels that are k' - k apart
wherever the kernel stands. Over all positions p their products sum up to

    sum_p x_c(p + k) x_c'(p + k') = sum_q x_c(q) x_c'(q + k' - k),    q = p + k,

so pairs of places of one lag k' - k share their sum, but for the pixels q at the border that the
kernel does not reach with one of them. Of the 81 pairs of a 3 x 3 kernel that leaves 13 lags (those
of k' - k and k - k' are transposes), and the patches need not be made.

Source: ours; the moment is the block Toeplitz matrix of the autocorrelation method of linear
prediction, with the borders of the covariance method (Makhoul, Proc. IEEE 1975).
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from crosspruner.pruning.kernel_axes import Axis


class LagSums:
    """The running sums of one layer's patches.

    Args:
        down: the vertical axis.
        across: the horizontal one.
        point: (B, FMs) what has been taken from the maps of each input FM: sums are those of
            patches whose padding is at minus the point.
    """

    def __init__(self, down: Axis, across: Axis, point: Tensor) -> None:
        self.down, self.across = down, across
        self.point = point = point.double()
        self.images = 0
        self._maps = point.new_zeros(*point.shape, down.size, across.size)
        self._sums = {
            key: point.new_zeros(*point.shape, point.shape[1])
            for lag in self._lags()
            for key in self._pieces_of(lag)
        }
        inside = torch.ones(1, 1, down.size, across.size, dtype=point.dtype, device=point.device)
        inside = F.unfold(
            self._padded(inside),
            (down.places, across.places),
            dilation=(down.dilation, across.dilation),
        )
        self._outside = 1 - inside[0]  # (K, positions)

    @staticmethod
    def serve(down: Axis, across: Axis) -> bool:
        """Whether they save products, and can be had: no padding wider than the kernel's reach."""
        pads = (down.before, down.after, across.before, across.after)
        within = (down.reach, down.reach, across.reach, across.reach)
        fits = all(0 <= pad <= reach for pad, reach in zip(pads, within, strict=True))
        return fits and down.places * across.places > 1

    def add(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Take in some images.

        Args:
            x: (B, FMs, n, H, W) maps, the point taken from them.
            y: (B, outputs, n, H', W') outputs.

        Returns:
            What the images add to the sums of x~ y' (B, d, outputs) and of x~ (B, d), float64.
        """
        down, across = self.down, self.across
        images, row = x.shape[2], across.size + across.reach
        line = images * row
        # Rows of all images one after the other, each followed by as many zeros as the largest lag:
        # then a lag is one shift of the whole, and what it takes beyond a row's end is zero.
        maps = F.pad(x.transpose(2, 3), (0, across.reach))
        flat = F.pad(maps.flatten(2), (across.reach, across.reach))
        for lag in self._lags():
            self._add_lag(flat, maps, lag)
        self.images += images
        summed = x.sum(2, dtype=torch.float64)
        self._maps += summed
        outputs = F.pad(y.transpose(2, 3), (0, row - across.out)).flatten(2)
        cross = [
            self._cross(flat, outputs, line, *place)
            for place in product(range(down.places), range(across.places))
        ]
        sums = torch.stack(cross, 2).double()  # (B, FMs, K, outputs)
        beside = self._outside @ y.sum(2, dtype=torch.float64).flatten(2).mT  # (B, K, outputs)
        sums -= self.point[:, :, None, None] * beside.unsqueeze(1)
        every = torch.ones_like(self._outside[:1])
        total = self._read(summed, every).squeeze(3)  # (B, FMs, K)
        total -= images * self.point.unsqueeze(2) * self._outside.sum(1)
        return sums.flatten(1, 2), total.flatten(1, 2)

    def second(self) -> Tensor:
        """(B, d, d) the sum of x~ x~'."""
        bands, fms = self.point.shape
        places = list(product(range(self.down.places), range(self.across.places)))
        total = self.point.new_empty(bands, fms, len(places), fms * len(places))
        for index, place in enumerate(places):
            pairs = [self._pair(place, other) for other in places]
            total[:, :, index] = torch.stack(pairs, 3).flatten(2)
        total = total.flatten(1, 2)
        # x~ = x - m o with x zero in the padding and o one there: a product less of x and m o on
        # either side, of which half of m o' o m' is left out.
        own = self._read(self._maps, self._outside)  # (B, FMs, K, K') sum of x over o of K'
        beside = self._outside @ self._outside.T
        own -= self.images / 2 * self.point[:, :, None, None] * beside
        point = torch.eye(len(places)).to(own) * self.point[:, :, None, None]
        left, right = own.flatten(1, 2), point.flatten(1, 2)
        total.baddbmm_(left, right.mT, alpha=-1)
        return total.baddbmm_(right, left.mT, alpha=-1)

    def _lags(self) -> Iterator[tuple[int, int]]:
        """One of each lag and its opposite, in places of the kernel."""
        down, across = self.down.places, self.across.places
        for lag in product(range(down), range(1 - across, across)):
            if lag >= (0, 0):
                yield lag

    def _pieces_of(self, lag: tuple[int, int]) -> Iterator[tuple[int, int, int, int, int, int]]:
        """The keys of its sums: the lag, and start and stop of the pixels of both axes."""
        for rows, columns in product(self.down.pieces(lag[0]), self.across.pieces(lag[1])):
            yield *lag, *rows, *columns

    def _add_lag(self, flat: Tensor, maps: Tensor, lag: tuple[int, int]) -> None:
        down, across = (of * axis.dilation for of, axis in zip(lag, self._axes, strict=True))
        line = maps.shape[3] * maps.shape[4]
        columns = self.across.pieces(lag[1])
        widest = max(columns, key=lambda piece: piece[1] - piece[0], default=(0, 0))
        for start, stop in self.down.pieces(lag[0]) if columns else ():
            first = self.across.reach + start * line
            last = self.across.reach + stop * line
            shift = down * line + across
            whole = flat[:, :, first:last] @ flat[:, :, first + shift : last + shift].mT
            left = self._sums[*lag, start, stop, *widest]
            left += whole
            for one in columns:
                if one == widest:
                    continue
                here = maps[:, :, start:stop, :, one[0] : one[1]].flatten(2)
                there = maps[
                    :, :, start + down : stop + down, :, one[0] + across : one[1] + across
                ].flatten(2)
                part = here @ there.mT
                self._sums[*lag, start, stop, *one] += part
                left -= part

    def _cross(self, flat: Tensor, outputs: Tensor, line: int, down: int, across: int) -> Tensor:
        """(B, FMs, outputs) the sum of products of what a place reads and the outputs."""
        start, stop = self.down.pixels(down)
        first = start - (down * self.down.dilation - self.down.before)
        shift = self.across.reach + across * self.across.dilation - self.across.before
        read = flat[:, :, start * line + shift : stop * line + shift]
        return read @ outputs[:, :, first * line : (first + stop - start) * line].mT

    def _pair(self, place: tuple[int, int], other: tuple[int, int]) -> Tensor:
        """(B, FMs, FMs) the sum of products of what two places read."""
        if other < place:
            return self._pair(other, place).mT
        lag = other[0] - place[0], other[1] - place[1]
        rows, columns = (
            axis.pixels(at, by) for axis, at, by in zip(self._axes, place, lag, strict=True)
        )
        total = self.point.new_zeros(*self.point.shape, self.point.shape[1])
        for key in self._pieces_of(lag):
            above, below, left, right = key[2:]
            if rows[0] <= above < below <= rows[1] and columns[0] <= left < right <= columns[1]:
                total += self._sums[key]
        return total

    @property
    def _axes(self) -> tuple[Axis, Axis]:
        return self.down, self.across

    def _padded(self, maps: Tensor) -> Tensor:
        down, across = self.down, self.across
        return F.pad(maps, (across.before, across.after, down.before, down.after))

    def _read(self, maps: Tensor, weights: Tensor) -> Tensor:
        """(B, FMs, K, m) the sum of what each place reads of maps (B, FMs, H, W), over positions
        that are weighed by weights (m, positions)."""
        down, across = self.down, self.across
        found = F.conv2d(
            self._padded(maps).flatten(0, 1).unsqueeze(1),
            weights.view(-1, 1, down.out, across.out),
            stride=(down.dilation, across.dilation),
        )
        return found.flatten(2).mT.unflatten(0, maps.shape[:2])
