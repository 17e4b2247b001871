"""The layer table on the page of a run: its columns, a row per layer, the sums."""

from typing import Any

import pandas as pd

from crosspruner.reporting.templating import count, percent

# Column of the layer table -> (heading, format); text columns sort from A to Z first.
_COLUMNS: dict[str, tuple[str, str]] = {
    "layer": ("Layer", "text"),
    "kernel": ("Kernel", "text"),
    "in_fms": ("Input FMs", "count"),
    "out_fms": ("Output FMs", "count"),
    "kin": ("Kin", "count"),
    "kout": ("Kout", "count"),
    "slices": ("Slices", "count"),
    "compute_dense": ("Compute, dense", "count"),
    "compute": ("Compute, pruned", "count"),
    "saved": ("Saved", "percent"),
    "reduction_dense": ("Reduction, dense", "count"),
    "reduction": ("Reduction, pruned", "count"),
    "buffer": ("Buffer", "count"),
    "phases": ("Phases", "count"),
    "weights_kept": ("Weights kept", "percent"),
    "utilisation": ("Cells used", "percent"),
}
_SUMMED = {"compute_dense", "compute", "reduction_dense", "reduction", "buffer", "phases"}


def layer_headings(layers: pd.DataFrame) -> list[dict[str, Any]]:
    """The columns that the table has: their names, and whether they hold text.

    Args:
        layers: as `RunFolder.layers`.
    """
    return [
        {"name": name, "text": form == "text"}
        for key, (name, form) in _COLUMNS.items()
        if key in layers
    ]


def layer_rows(layers: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the table, and what its last line sums up.

    Args:
        layers: as `RunFolder.layers`.

    Returns:
        Per layer its cells and whether pruning may touch it; and a text per column. Both are empty
        without layers.
    """
    rows = []
    shown_columns = [key for key in _COLUMNS if key in layers]
    for position, record in enumerate(layers.to_dict("records")):
        cells = []
        for key in shown_columns:
            value, form = record[key], _COLUMNS[key][1]
            shown = {"count": count, "percent": percent}.get(form, _text)(value)
            plain = "" if pd.isna(value) else value
            cells.append({"value": plain, "shown": shown, "text": form == "text"})
        touched = str(record["prunable"]).lower() != "false"
        rows.append({"cells": cells, "touched": touched, "position": position})
    if not rows:
        return [], []
    totals = ["Sum"] + [
        count(layers[key].sum()) if key in _SUMMED else "" for key in shown_columns[1:]
    ]
    dense = layers["compute_dense"].sum()
    if dense:
        totals[shown_columns.index("saved")] = percent(1 - layers["compute"].sum() / dense)
    return rows, totals


def _text(value: Any) -> str:
    return "\N{EN DASH}" if pd.isna(value) else str(value)
