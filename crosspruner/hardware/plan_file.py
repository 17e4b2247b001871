"""Plans as JSON files from which a person can count the crossbars."""

import json
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from crosspruner.errors import PlanError
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.fm_order import checked_order
from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.mapping import Tiling

VERSION = 2
READABLE = (1, 2)
"""2 knows conv groups that share crossbars, sections of outputs, and how a weight comes about."""


def write_layer(layer: LayerPlan) -> dict[str, Any]:
    """One layer as plain JSON values, see `Plan.save`."""
    packing = layer.packing
    columns = packing.block_outputs if packing.block_group is None else packing.block_group
    blocks = [
        [i, [o for o in out if o >= 0] if isinstance(out, list) else out]
        for i, out in zip(packing.block_input.tolist(), columns.tolist(), strict=True)
    ]
    return {
        "name": layer.name,
        "compute_crossbars": layer.compute_crossbars,
        "dense_compute_crossbars": layer.dense_compute_crossbars,
        "slices": layer.slices,
        "row_splits": layer.row_splits,
        "grain": layer.grain,
        "prunable": layer.prunable,
        "weight_form": layer.weight_form,
        "pruned": layer.mask is not None,
        "inputs_reordered": layer.input_order is not None,
        "outputs_reordered": layer.output_order is not None,
        "geometry": _lists(asdict(layer.geometry)),
        "tiling": _lists(asdict(layer.tiling)),
        "input_groups": _unpadded(layer.input_table),
        "output_groups": _unpadded(layer.output_groups_table),
        "blocks": blocks,
    }


def read_layer(data: dict[str, Any], crossbar: Crossbar) -> LayerPlan:
    """The layer that `write_layer` wrote.

    Raises:
        PlanError: the listed blocks contradict the count beside them.
    """
    geometry = LayerGeometry(**_tuples(data["geometry"]))
    layer = LayerPlan(
        geometry,
        crossbar,
        Tiling(**_tuples(data["tiling"])),
        data["grain"],
        data["prunable"],
        weight_form=data.get("weight_form", "plain"),
        input_order=_read_order(data, "input", geometry.conv_groups, geometry.group_inputs),
        output_order=_read_order(data, "output", geometry.conv_groups, geometry.group_outputs),
    )
    if data["pruned"]:
        layer = replace(layer, mask=_read_mask(data["blocks"], layer))
    listed = len(data["blocks"]) * layer.tiling.crossbars_per_block
    if not listed == layer.compute_crossbars == data["compute_crossbars"]:
        raise PlanError(
            f"{layer.name}: the plan says {data['compute_crossbars']} compute crossbars but "
            f"lists {listed}: the file was changed by hand or cut short."
        )
    return layer


def to_text(value: Any, indent: str = "") -> str:
    """JSON with a line per key, and lists of numbers on one line."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(k)}: {to_text(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(inner + to_text(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value, separators=(",", ":"))


def _unpadded(table: Tensor) -> list[list[int]]:
    return [[fm for fm in row if fm >= 0] for row in table.tolist()]


def _read_order(data: dict[str, Any], side: str, groups: int, fms: int) -> Tensor | None:
    if not data[f"{side}s_reordered"]:
        return None
    flat = torch.tensor([fm for group in data[f"{side}_groups"] for fm in group])
    # Where conv groups share crossbars, their groups of FMs take turns in the table.
    flat = flat[(flat // fms).sort(stable=True).indices]
    return checked_order(data["name"], side, flat.view(groups, fms) % fms, groups, fms)


def _read_mask(blocks: list[list[Any]], layer: LayerPlan) -> Tensor:
    mask = torch.zeros(layer.mask_shape, dtype=torch.bool)
    pairs = [
        (unit, group % layer.input_groups)
        for group, columns in blocks
        for unit in (columns if isinstance(columns, list) else [columns])
    ]
    if pairs:
        units, groups = torch.tensor(pairs).unbind(1)
        mask[units, groups] = True
    return mask


def _lists(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
