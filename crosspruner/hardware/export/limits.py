"""Row and column limits for CrossSim and the IBM aihwkit, so that they cut layers as the plan does.

Both tools lay layers out by im2col (our folded mapping) and cut the matrix by themselves. A layer
given rows = kin * kh * kw and columns = kout is cut into as many tiles as the folded plan counts
(fewer where one FM exceeds the rows: they go on with the next FM in the same tile).
Neither tool packs recombined columns; pruned weights are zeros to them.
"""

import json
from pathlib import Path
from typing import Any

from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.mapping import ceil_div, choose_tiling
from crosspruner.hardware.mapping_spec import MappingSpec
from crosspruner.hardware.plan import Plan


def export_limits(plan: Plan, folder: str | Path) -> Path:
    """Writes crosssim.json, aihwkit.json and layers.json.

    * `crosssim.json` is read by `CrossSimParameters.from_json`: rows_max, cols_max, core style and
      weight bits, and the strategy MAX: full tiles, then the rest (CrossSim cuts equal tiles
      where the rows divide evenly).
    * `aihwkit.json` has the arguments of `MappingParameter`, max_input_size and max_output_size.
      aihwkit cuts equal tiles, of the same number.
    * `layers.json` has the `rows` (CrossSim rows_max, aihwkit max_input_size), the `cols`
      (cols_max, max_output_size) and the number of `tiles` of each layer, per conv group.

    Args:
        plan: of any mapping; the limits are those of the same model folded.
        folder: written to, created if need be.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "max_input_size": plan.crossbar.rows,
        "max_output_size": plan.crossbar.weight_columns,
    }
    files = {
        "crosssim.json": {"core": _crosssim_core(plan)},
        "aihwkit.json": {"mapping": sizes},
        "layers.json": {layer.name: _folded(layer) for layer in plan.layers},
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder


def _folded(layer: LayerPlan) -> dict[str, int]:
    """Rows, columns (in weights) and number of the tiles of one conv group, folded."""
    tiling = choose_tiling(layer.geometry, layer.crossbar, MappingSpec("folded"))
    rows = min(tiling.kin * tiling.bundle * tiling.fm_rows, layer.crossbar.rows)
    matrix = layer.geometry.group_inputs * tiling.fm_rows
    tiles = ceil_div(matrix, rows) * tiling.output_groups
    return {"rows": rows, "cols": tiling.kout * tiling.bundle, "tiles": tiles}


def _crosssim_core(plan: Plan) -> dict[str, Any]:
    """CrossSim's core parameters; its columns are weights, pairs and slices are further arrays."""
    crossbar = plan.crossbar
    slices = ceil_div(crossbar.weight_bits, crossbar.cell_bits)
    style = "BALANCED" if crossbar.differential else "OFFSET"
    core: dict[str, Any] = {
        "style": style if slices == 1 else "BITSLICED",
        "rows_max": crossbar.rows,
        "cols_max": crossbar.weight_columns,
        "weight_bits": crossbar.weight_bits,
        "mapping": {
            "weights": {"row_partition_strategy": "MAX", "col_partition_strategy": "MAX"},
        },
    }
    if slices > 1:
        core["bit_sliced"] = {"style": style, "num_slices": slices}
    return core
