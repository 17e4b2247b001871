"""The table of a sweep: one row per run, whatever became of it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crosspruner.reporting.run_folder import RunFolder, find_runs
from crosspruner.reporting.templating import write_whole

SUMMARY = "summary.csv"

SETTINGS = (
    "model",
    "data",
    "crossbar",
    "mapping",
    "grain",
    "solver",
    "procedure",
    "budget",
    "ratio",
    "seed",
)
"""What a run was asked to do; known for failed runs as well."""

RESULTS = (
    "dense_accuracy",
    "accuracy",
    "accuracy_drop",
    "val_accuracy",
    "compute_crossbars_dense",
    "compute_crossbars",
    "compute_saved",
    "total_crossbars_dense",
    "total_crossbars",
    "total_saved",
    "weight_sparsity",
    "phases",
    "wall_seconds",
)
"""What came out, from `summary.json`; empty for a run that is not done."""

_HOUSEKEEPING = frozenset(
    {"callbacks", "ckpt_path", "debug", "hydra", "logger", "paths", "tags", "task_name"}
)


def sweep_table(runs: Sequence[RunFolder], root: Path) -> pd.DataFrame:
    """One row per run.

    Args:
        runs: The runs.
        root: Folder to which the paths in the column `run` are relative.

    Returns:
        Columns `run status message overrides`, then `SETTINGS`, then `RESULTS`, then any other
        field that a `summary.json` holds.
    """
    rows = []
    for run in runs:
        row: dict[str, Any] = {
            "run": run.path.relative_to(root).as_posix(),
            "status": run.status,
            "message": run.message,
            "overrides": " ".join(run.overrides),
        }
        row |= {key: run.fact(key) for key in SETTINGS}
        row |= {key: run.summary.get(key) for key in RESULTS}
        row |= {key: value for key, value in run.summary.items() if key not in row}
        rows.append(row)
    table = pd.DataFrame(rows)
    for column in ("ratio", *RESULTS):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    return table


def write_sweep_summary(folder: Path | str) -> Path:
    """Write `summary.csv` of a sweep: one row per job, done, failed or unfinished.

    Args:
        folder: The sweep, or any folder above run folders.

    Returns:
        Path of the file.

    Raises:
        RunFolderError: If the folder does not exist or no run is in it.
    """
    folder = Path(folder)
    return write_whole(folder / SUMMARY, sweep_table(find_runs(folder), folder).to_csv(index=False))


def parse_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """`["+a.b=1", "grain=column"]` -> `{"a.b": "1", "grain": "column"}`.

    Overrides that say where and how a run was recorded, not what was run, are left out.
    """
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs if key.split(".")[0] not in _HOUSEKEEPING}


def varying(table: pd.DataFrame) -> list[str]:
    """Those of the columns that hold more than one value."""
    return [str(column) for column in table if table[column].astype(str).nunique() > 1]
