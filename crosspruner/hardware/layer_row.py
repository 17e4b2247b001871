"""One layer of a plan as a flat row: what tables and `crossbars.csv` hold of it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosspruner.hardware.layer_plan import LayerPlan


def layer_row(layer: "LayerPlan") -> dict[str, Any]:
    """Plain numbers and strings; fractions (saved, weights_kept, utilisation) are 0-1."""
    dense, geometry, tiling = layer.dense, layer.geometry, layer.tiling
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "in_fms": geometry.in_channels,
        "out_fms": geometry.out_channels,
        "kernel": "x".join(map(str, geometry.kernel)),
        "conv_groups": layer.conv_groups,
        "bundle": layer.bundle,
        "sections": geometry.sections,
        "kin": layer.kin,
        "kout": layer.kout,
        "window": "x".join(map(str, tiling.window)),
        "input_groups": layer.input_groups,
        "output_groups": layer.output_groups,
        "slices": layer.slices,
        "row_splits": layer.row_splits,
        "prunable": layer.prunable,
        "compute_dense": layer.dense_compute_crossbars,
        "compute": layer.compute_crossbars,
        "saved": 1 - layer.compute_crossbars / layer.dense_compute_crossbars,
        "reduction_dense": dense.reduction_crossbars,
        "reduction": layer.reduction_crossbars,
        "buffer": layer.buffer_crossbars,
        "phases": layer.phases,
        "weights_kept": layer.weights_kept,
        "cells_used": layer.cells_used,
        "cells_occupied": layer.cells_occupied,
        "utilisation": layer.utilisation,
    }
