"""The columns of the table of runs on the page of a sweep."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from crosspruner.reporting.run_folder import RunFolder
from crosspruner.reporting.sweep_table import SETTINGS, parse_overrides, varying
from crosspruner.reporting.templating import count, duration, number, percent, points

MAX_CHOICES = 12
"""A column with more values than this is searched by text, not by a choice box."""

_LAYER_RATIO = "budget.layer_ratios."

_NUMERIC = frozenset({"ratio", "seed"})

_RESULTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "accuracy": ("Accuracy", percent),
    "accuracy_drop": ("Against dense", points),
    "compute_crossbars_dense": ("Compute, dense", count),
    "compute_crossbars": ("Compute, pruned", count),
    "compute_saved": ("Compute saved", percent),
    "total_saved": ("All saved", percent),
    "phases": ("Phases", count),
    "wall_seconds": ("Time", duration),
}


@dataclass(frozen=True)
class Column:
    """One column, a cell per run."""

    name: str
    values: list[str]
    """What sorting compares and filters match; empty where it is not known."""
    shown: list[str]
    text: bool
    """Whether it sorts as text, A first; numbers sort largest first."""
    is_setting: bool

    @property
    def choices(self) -> list[str]:
        """Values to offer in a choice box; none where a box would not help."""
        options = sorted(set(self.values), key=lambda value: (len(value), value))
        return options if self.is_setting and 1 < len(options) <= MAX_CHOICES else []


def run_columns(table: pd.DataFrame, runs: Sequence[RunFolder]) -> Iterator[Column]:
    """Settings in which runs differ, results, then other overrides that differ.

    Args:
        table: What `sweep_table` returns for `runs`.
        runs: The runs, in the same order.
    """
    for key in varying(table[list(SETTINGS)]):
        cells = [_plain(value) for value in table[key]]
        yield Column(key.capitalize(), cells, cells, key not in _NUMERIC, is_setting=True)
    for key, (name, form) in _RESULTS.items():
        # What is shown is what sorts: against dense, a loss is negative.
        values = (-table[key] if key == "accuracy_drop" else table[key]).tolist()
        yield Column(
            name,
            ["" if pd.isna(value) else repr(float(value)) for value in values],
            ["" if pd.isna(value) else form(value) for value in values],
            False,
            is_setting=False,
        )
    typed = pd.DataFrame([parse_overrides(run.overrides) for run in runs], table.index)
    typed = typed[[key for key in typed if key not in SETTINGS]].fillna("").astype(str)
    for key in varying(typed):
        values = list(typed[key])
        if key.startswith(_LAYER_RATIO):  # a search has many, with a value of its own in each run
            shown = [_short(value) for value in values]
            yield Column(key.removeprefix(_LAYER_RATIO), values, shown, False, is_setting=False)
        else:
            yield Column(key, values, values, True, is_setting=True)


def shared_settings(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Settings that all runs have in common, with their value."""
    return [
        (key, _plain(table[key][0]))
        for key in SETTINGS
        if bool(table[key].notna().all()) and table[key].astype(str).nunique() == 1
    ]


def _plain(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    """`0.666667` -> `0.667`; what is no number stays as it is."""
    known = number(text)
    return text if known is None else f"{known:.3g}"
