"""The files of a run folder, each read for itself. What is broken raises, in whatever way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from crosspruner.hardware.plan import Plan
from crosspruner.reporting.cost import COST_COLUMNS
from crosspruner.reporting.layers import layer_table

LAYER_COLUMNS = [
    "layer",
    "kind",
    "in_fms",
    "out_fms",
    "kernel",
    "kin",
    "kout",
    "input_groups",
    "output_groups",
    "slices",
    "prunable",
    "compute_dense",
    "compute",
    "saved",
    "reduction_dense",
    "reduction",
    "buffer",
    "phases",
    "weights_kept",
]
"""Columns of `crossbars.csv` that reports rely on; there may be more."""


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    loaded = json.loads(file.read_text())
    if not isinstance(loaded, dict):
        raise ValueError(f"expected an object, found {type(loaded).__name__}")
    return loaded


def read_yaml(file: Path) -> Any:
    """A YAML file, whatever it holds."""
    # The C loader is ten times as fast: a sweep of 500 runs has 1,500 such files.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_text(), Loader=loader)


def read_yaml_object(file: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    loaded = read_yaml(file)
    if not isinstance(loaded, dict):
        raise ValueError(f"expected a mapping, found {type(loaded).__name__}")
    return loaded


def read_metrics(file: Path) -> pd.DataFrame:
    """`metrics.csv`: numbers alone, NaN where there is none."""
    # A killed run can leave a last line with too few or too many fields.
    table = pd.read_csv(file, on_bad_lines="skip")
    return table.apply(pd.to_numeric, errors="coerce")


def read_layers(file: Path) -> pd.DataFrame:
    """`crossbars.csv`, with all of LAYER_COLUMNS."""
    table = pd.read_csv(file)
    if "layer" not in table:
        raise ValueError("the column 'layer' is missing")
    missing = [column for column in LAYER_COLUMNS if column not in table]
    return table.assign(**dict.fromkeys(missing, np.nan))


def read_costs(file: Path) -> pd.DataFrame:
    """`cost.csv`, whole."""
    table = pd.read_csv(file)
    if missing := [column for column in COST_COLUMNS if column not in table]:
        raise ValueError(f"columns are missing: {', '.join(missing)}")
    # A killed run can leave a part of the rows, whose sums would pass for those of the network.
    # A network that is one layer has the name "", which reads as none.
    events = table.groupby(["layer", "quantity", "event"], dropna=False)["version"]
    if table.drop(columns="layer").isna().any(axis=None) or (events.nunique() < 2).any():
        raise ValueError("rows are missing: dense and pruned do not list the same events")
    return table


def layers_of_plan(file: Path) -> pd.DataFrame:
    """What `crossbars.csv` holds, from a saved plan."""
    return layer_table(Plan.load(file))
