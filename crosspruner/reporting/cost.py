"""What an image costs, dense against pruned: the table `cost.csv`, its totals and its picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from crosspruner.hardware import Plan, UnitCosts
from crosspruner.reporting.svg import PALETTE, SERIES, drawing, new_axes
from crosspruner.reporting.templating import count

COST_COLUMNS = ["version", "layer", "quantity", "event", "count", "unit_cost", "cost", "unit"]
"""Columns of `cost.csv`: in every row, cost = count * unit_cost."""

_NAMES = {
    ("energy", "array_read"): "cells read",
    ("energy", "dac"): "rows driven",
    ("energy", "adc"): "columns converted",
    ("energy", "adder"): "additions",
    ("energy", "buffer"): "buffer bits",
    ("energy", "leakage"): "leakage, crossbar ns",
    ("latency", "read"): "reads, one after the other",
    ("area", "array"): "cells",
    ("area", "dac"): "row drivers",
    ("area", "adc"): "ADCs",
    ("area", "adder"): "adders",
}


def event_name(quantity: str, event: str) -> str:
    """What a table calls an event."""
    return _NAMES.get((quantity, event), event)


def cost_table(plan: Plan, units: UnitCosts) -> pd.DataFrame:
    """Every event of one image on the dense and on the pruned plan; columns `COST_COLUMNS`."""
    versions = {"dense": plan.dense, "pruned": plan}
    rows = [
        {"version": version, **row}
        for version, each in versions.items()
        for row in each.cost(units).rows()
    ]
    return pd.DataFrame(rows, columns=COST_COLUMNS)


def write_cost_table(plan: Plan, units: UnitCosts, path: Path) -> None:
    """Write `cost.csv`."""
    cost_table(plan, units).to_csv(path, index=False)


def cost_summary(plan: Plan, units: UnitCosts) -> dict[str, Any]:
    """The flat figures of `summary.json`; dense and pruned."""
    found: dict[str, Any] = {"cost": units.name}
    for suffix, each in (("_dense", plan.dense), ("", plan)):
        cost = each.cost(units)
        found |= {
            f"energy_uj{suffix}": cost.energy_uj,
            f"latency_us{suffix}": cost.latency_us,
            f"area_mm2{suffix}": cost.area_mm2,
        }
    return found


def cost_by_event(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Sum over layers: a row per event, with count and cost, dense and pruned, and the unit cost.

    Args:
        table: as `cost_table` gives it.
        quantity: energy, latency or area.
    """
    some = table[table["quantity"] == quantity]
    sums = some.pivot_table(
        index="event", columns="version", values=["count", "cost"], aggfunc="sum", sort=False
    )
    first = some.groupby("event", sort=False)["unit_cost"].agg(["min", "max"])
    return pd.DataFrame(
        {
            "event": sums.index,
            "count_dense": sums["count"]["dense"].to_numpy(),
            "count": sums["count"]["pruned"].to_numpy(),
            # Layers may differ in it: then there is no one figure.
            "unit_cost": np.where(first["min"] == first["max"], first["min"], np.nan),
            "cost_dense": sums["cost"]["dense"].to_numpy(),
            "cost": sums["cost"]["pruned"].to_numpy(),
        }
    )


def energy_bars(table: pd.DataFrame) -> Figure | None:
    """Energy per image, dense and pruned, each bar cut by event; None where nothing costs any."""
    found = cost_by_event(table, "energy") if not table.empty else table
    if found.empty or not found["cost_dense"].sum():
        return None
    found = found[(found["cost_dense"] > 0) | (found["cost"] > 0)]
    with drawing():
        figure, axes = new_axes(height=1.9)
        left = np.zeros(2)
        for i, row in enumerate(found.itertuples(index=False)):
            width = np.array([row.cost_dense, row.cost], dtype=float) * 1e-6
            label = event_name("energy", str(row.event)).removesuffix(", crossbar ns")
            axes.barh([0, 1], width, 0.62, left, color=SERIES[i % len(SERIES)], label=label)
            left += width
        for y, total in enumerate(left):
            axes.text(
                total + 0.015 * left.max(), y, f"{total:,.1f}", va="center", fontsize=9,
                color=PALETTE["muted"],
            )  # fmt: skip
        axes.set_yticks([0, 1], ["dense", "pruned"], color=PALETTE["ink"])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(1.6, -0.6)
        axes.set_xlim(0, left.max() * 1.15)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("energy per image, microjoule")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        figure.legend(
            loc="outside upper center",
            ncols=3,
            handlelength=1.0,
            handleheight=0.8,
            borderaxespad=0.8,
        )
    return figure


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, thousands grouped: 1,230; 0.00183."""
    if not np.isfinite(value):
        return "\N{EN DASH}"
    if value == 0:
        return "0"
    places = max(digits - 1 - int(np.floor(np.log10(abs(value)))), 0)
    return f"{value:,.{places}f}"


_SCALES = {
    "energy": ("\N{MICRO SIGN}J", 1e-6, "pJ"),
    "latency": ("\N{MICRO SIGN}s", 1e-3, "ns"),
    "area": ("mm\N{SUPERSCRIPT TWO}", 1e-6, "\N{MICRO SIGN}m\N{SUPERSCRIPT TWO}"),
}
"""Quantity -> unit of a sum, factor on the table's unit, unit of one event."""


def cost_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the page's table: what, how often, at what each, how much; dense and pruned."""
    rows: list[dict[str, Any]] = []
    for quantity, (unit, scale, unit_of_one) in _SCALES.items():
        found = cost_by_event(table, quantity)
        for row in found.to_dict("records"):
            each = float(row["unit_cost"])
            rows.append(
                {
                    "name": event_name(quantity, row["event"]),
                    "count_dense": count(row["count_dense"]),
                    "count": count(row["count"]),
                    "unit_cost": "by layer"
                    if np.isnan(each)
                    else f"{significant(each)} {unit_of_one}",
                    "cost_dense": f"{significant(row['cost_dense'] * scale)} {unit}",
                    "cost": f"{significant(row['cost'] * scale)} {unit}",
                    "total": False,
                }
            )
        rows.append(
            {
                "name": quantity.capitalize(),
                "count_dense": "",
                "count": "",
                "unit_cost": "",
                "cost_dense": f"{significant(float(found['cost_dense'].sum()) * scale)} {unit}",
                "cost": f"{significant(float(found['cost'].sum()) * scale)} {unit}",
                "total": True,
            }
        )
    return rows
