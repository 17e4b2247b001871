"""What solver, refit, order and budget are worth: accuracies right after pruning, untrained."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from crosspruner.pruning.layer_order import REORDERS
from crosspruner.reporting.race import with_spread


def solver_table(table: pd.DataFrame) -> str:
    """A row per grain and solver, a column per way of pruning; the best of a grain in bold.

    Args:
        table: rows of one network, part "oneshot", from `race.standings`.

    Returns:
        Markdown. Several ratios have a table each.
    """
    return "\n\n".join(_at_one_ratio(rows, ratio) for ratio, rows in table.groupby("ratio"))


def _at_one_ratio(table: pd.DataFrame, ratio: Any) -> str:
    rows = table.to_dict("records")
    ways = sorted({_way(row) for row in rows})
    best: dict[tuple, float] = {}
    cells: dict[tuple, dict[tuple, dict]] = {}
    for row in rows:
        cells.setdefault((row["grain"], row["solver"]), {})[_way(row)] = dict(row)
        place = (row["grain"], _way(row))
        best[place] = max(best.get(place, 0.0), row["before"])
    lines = [
        f"Right after {ratio:.1%} are removed, layer by layer, without any training:",
        "",
        "| grain | solver | " + " | ".join(_title(way) for way in ways) + " |",
        "|---|---|" + "---|" * len(ways),
    ]
    for (grain, solver), found in sorted(cells.items(), key=lambda cell: _weakest_first(*cell)):
        shown = [_cell(found[way], best[grain, way]) if way in found else "" for way in ways]
        lines.append(f"| {grain} | {solver} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", _seeds(rows)])


def _seeds(rows: Sequence[Mapping[Any, Any]]) -> str:
    """How many seeds the cells are of, and which have fewer than the others."""
    most = max(row["seeds"] for row in rows)
    fewer = [
        f"{row['grain']} {row['solver']} {_title(_way(row))} ({row['seeds']})"
        for row in rows
        if row["seeds"] < most
    ]
    return f"Seeds: {most}" + (f", but for {'; '.join(fewer)}" if fewer else "") + "."


def _way(row: Mapping[Any, Any]) -> tuple:
    """Sorts as the columns stand: budget, refit, order."""
    return row["budget"] != "uniform", row["budget"], row["refit"], REORDERS.index(row["reorder"])


def _title(way: tuple) -> str:
    _, budget, refit, order = way
    parts = ["refitted" if refit else "weights as they are"]
    parts += [REORDERS[order]] if order else []
    parts += [f"{budget} budget"] if budget != "uniform" else []
    return ", ".join(parts)


def _weakest_first(place: tuple, found: Mapping[tuple, Mapping[str, Any]]) -> tuple:
    return place[0], found[min(found)]["before"], place[1]


def _cell(row: Mapping[str, Any], best: float) -> str:
    shown = with_spread(row, "before")
    return f"**{shown}**" if row["before"] == best else shown
