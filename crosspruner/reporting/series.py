"""Runs that belong on one line: all alike but for how much was pruned, and the seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from crosspruner.reporting.figures import shorten
from crosspruner.reporting.run_folder import RunFolder
from crosspruner.reporting.sweep_table import parse_overrides, varying

METHOD = ("grain", "solver", "procedure", "budget", "mapping")
"""Settings that tell methods apart; the crossbar comes beside them."""

_MAX_CHOICES = 6
"""An override with more values than this is searched over, not compared: it makes no lines."""

_SEARCHED = "budget.layer_ratios"
"""Overrides that are never compared one by one, however few values they have."""


@dataclass(frozen=True)
class Series:
    """One line of the frontier."""

    family: str
    """Network and data, as in `vgg8 on digits`: only accuracies of one family are compared."""
    crossbar: str
    method: str
    """What sets this line apart from others with the same crossbar."""
    runs: pd.DataFrame
    """Its finished runs: rows of the sweep table."""
    groups: pd.DataFrame
    """A row per group of runs that differ in the seed only, by crossbars saved: `ratio`, `saved`,
    `saved_std`, `accuracy`, `accuracy_std`, `seeds`, `members` (positions in the sweep table)."""

    @property
    def label(self) -> str:
        """Name in legends and files."""
        return ", ".join(part for part in (self.crossbar, self.method) if part)

    @property
    def line(self) -> pd.DataFrame:
        """Groups to connect: all of them, or the best where one ratio has several.

        A search visits one ratio many times; a line through all its trials would mean nothing, so
        it connects those that no other beats in both accuracy and crossbars saved.
        """
        if self.groups["ratio"].is_unique:
            return self.groups
        best_beyond = self.groups["accuracy"][::-1].cummax()[::-1].shift(-1, fill_value=-np.inf)
        return self.groups[self.groups["accuracy"] > best_beyond]


def find_series(table: pd.DataFrame, runs: Sequence[RunFolder]) -> list[Series]:
    """Sort the finished runs of a sweep into lines.

    Args:
        table: What `sweep_table` returns for `runs`.
        runs: The runs, in the same order.
    """
    done = table[table["status"] == "done"].dropna(subset=["accuracy", "compute_saved"])
    if done.empty:
        return []
    typed = _other_overrides(done, runs)
    few = [
        key
        for key in varying(typed)
        if typed[key].nunique() <= _MAX_CHOICES and not key.startswith(_SEARCHED)
    ]
    named = done[["model", "data", "crossbar", *METHOD]].astype(str).join(typed[few])
    telling = _telling(named, always=["model", "data", "crossbar"]) or ["grain"]
    parts = named[telling].copy()
    for key in set(telling) & set(few):
        parts[key] = (key + "=" + typed[key].map(shorten)).where(typed[key] != "", "")
    keys = pd.DataFrame(
        {
            "family": done["model"].astype(str) + " on " + done["data"].astype(str),
            "crossbar": done["crossbar"].astype(str),
            "method": [", ".join(filter(None, row)) for row in parts.to_numpy()],
            # With a ratio for each layer, that of the model is an outcome.
            "ratio": done["ratio"].where(done["budget"] != "per_layer"),
            "rest": [" ".join(row) for row in typed.to_numpy()],
        },
        index=done.index,
    )
    found = []
    for names, part in keys.groupby(["family", "crossbar", "method"]):
        family, crossbar, name = map(str, names)
        members = done.loc[part.index]
        found.append(Series(family, crossbar, name, members, _groups(members, part)))
    return sorted(found, key=lambda s: (s.family, _size(s.crossbar), s.method))


def _telling(table: pd.DataFrame, always: list[str]) -> list[str]:
    """Columns besides `always` that are needed to tell rows apart, first ones preferred.

    Settings often change together (a mapping with its grain, a schedule with its weights); a name
    that lists them all tells no more than the first of them.
    """
    chosen: list[str] = []
    for column in table.columns.difference(always, sort=False):
        known = [*always, *chosen]
        if table.groupby([*known, column]).ngroups > table.groupby(known).ngroups:
            chosen.append(column)
    return chosen


def _other_overrides(done: pd.DataFrame, runs: Sequence[RunFolder]) -> pd.DataFrame:
    """What else was typed for each run: a column per key, empty text where it was not."""
    typed = pd.DataFrame([parse_overrides(runs[i].overrides) for i in done.index], done.index)
    known = {*METHOD, "model", "data", "crossbar", "ratio", "seed"}
    return typed[[key for key in typed if key not in known]].fillna("").astype(str)


def _groups(runs: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (ratio, _), part in keys.groupby(["ratio", "rest"], dropna=False):
        members = runs.loc[part.index]
        rows.append(
            {
                "ratio": ratio,
                "saved": members["compute_saved"].mean(),
                "saved_std": members["compute_saved"].std(ddof=0),
                "accuracy": members["accuracy"].mean(),
                # One seed has no spread; of several, the sample's.
                "accuracy_std": members["accuracy"].std(ddof=1) if len(members) > 1 else 0.0,
                "seeds": len(members),
                "members": list(part.index),
            }
        )
    table = pd.DataFrame(rows).sort_values(["saved", "accuracy"], kind="stable")
    return table.reset_index(drop=True)


def _size(crossbar: str) -> tuple[int, str]:
    rows = crossbar.partition("x")[0]
    return int(rows) if rows.isdigit() else 0, crossbar
