"""Crossbars beside the compute ones: those that add partial outputs, those that hold rows."""

from torch import Tensor

from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.mapping import LayerGeometry, Tiling, ceil_div


def reduction_crossbars(tiling: Tiling, crossbar: Crossbar, fan_in: Tensor) -> int:
    """Crossbars that add up the partial outputs of one layer.

    A reduction crossbar stacks F = floor(R / V) vectors of V = kout * h * w (times the bundle)
    partial outputs on its rows and adds them, so p partial sums take ceil((p - 1) / (F - 1)) of
    them per output group and slice.

    Our reading where a vector is longer than half the rows (F < 2, no addition possible): the
    vector is cut into the fewest equal pieces of which two fit, and each piece is added by
    crossbars of its own. On a single row nothing can be added at all; one crossbar per addition is
    counted then, as for F = 2.

    Args:
        tiling: the layer's tiling.
        crossbar: the array.
        fan_in: (G / bundle * Q,) int64, input groups that each output group adds up.

    Returns:
        The count, over all output groups and slices.
    """
    length = tiling.kout * tiling.bundle * tiling.window[0] * tiling.window[1]
    pieces = ceil_div(length, max(crossbar.rows // 2, 1))
    vectors = max(crossbar.rows // ceil_div(length, pieces), 2)
    additions = (fan_in * tiling.row_splits - 1).clamp(min=0)
    chain = -(-additions // (vectors - 1))
    return int(chain.sum()) * pieces * tiling.slices


def buffer_crossbars(geometry: LayerGeometry, crossbar: Crossbar, mapping: str) -> int:
    """Crossbars that hold the input rows which a kernel still needs: ceil(Cin * Win * n / R).

    n = (kh - 1) * dilation rows, the design's kh - 1 for plain kernels. Our reading: an unfolded
    layer sees its whole input at once and holds none.

    Args:
        geometry: the layer's shapes.
        crossbar: the array.
        mapping: folded, semifolded or unfolded.

    Returns:
        The count.
    """
    if mapping == "unfolded":
        return 0
    held = (geometry.kernel[0] - 1) * geometry.dilation[0]
    return ceil_div(geometry.in_channels * geometry.in_size[1] * held, crossbar.rows)
