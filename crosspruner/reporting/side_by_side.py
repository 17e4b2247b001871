"""Several plans next to each other: which crossbar, which mapping, which network."""

from collections.abc import Mapping
from io import StringIO
from itertools import chain

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosspruner.hardware.plan import Plan
from crosspruner.reporting.figures import shorten
from crosspruner.reporting.layers import layer_table
from crosspruner.reporting.svg import SERIES, drawing, new_axes

TOTALS = {
    "compute_crossbars": "compute crossbars",
    "reduction_crossbars": "reduction crossbars",
    "buffer_crossbars": "buffer crossbars",
    "total_crossbars": "total crossbars",
    "phases": "phases per image",
    "utilisation": "cells used",
}
"""Plan property -> its name in the table."""


def layers_of(plans: Mapping[str, Plan]) -> pd.DataFrame:
    """The layer tables of all plans, one below the other; the column `plan` says whose."""
    tables = {label: layer_table(plan) for label, plan in plans.items()}
    return pd.concat(tables, names=["plan"]).reset_index("plan").reset_index(drop=True)


def totals_of(plans: Mapping[str, Plan]) -> pd.DataFrame:
    """A row per plan: crossbar, mapping, and the totals."""
    rows = {
        label: {
            "crossbar": str(plan.crossbar),
            "mapping": plan.mapping.name,
            **{key: getattr(plan, key) for key in TOTALS},
        }
        for label, plan in plans.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("plan").reset_index()


def compute_by_layer(plans: Mapping[str, Plan]) -> dict[str, list[int | None]]:
    """{layer name: compute crossbars, plan by plan}; None where a plan has no such layer."""
    found = [{each.name: each.compute_crossbars for each in plan.layers} for plan in plans.values()]
    return {name: [each.get(name) for each in found] for name in dict.fromkeys(chain(*found))}


def comparison(plans: Mapping[str, Plan]) -> str:
    """A plain-text table: compute crossbars per layer and all totals, a column per plan.

    Args:
        plans: {label: plan}; a layer that a plan lacks is left blank in its column.
    """
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="compute crossbars", title_justify="left"
    )
    table.add_column("layer", no_wrap=True)
    for label in plans:
        table.add_column(Text(label), justify="right")
    for name, counts in compute_by_layer(plans).items():
        table.add_row(Text(name), *("" if n is None else f"{n:,}" for n in counts))
    table.add_section()
    for key, name in TOTALS.items():
        values = (getattr(plan, key) for plan in plans.values())
        table.add_row(name, *(f"{v:,}" if isinstance(v, int) else f"{v:.1%}" for v in values))
    width = max(80, 40 + 22 * len(plans))
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def comparison_figure(plans: Mapping[str, Plan]) -> Figure:
    """Compute crossbars per layer on a log scale, a colour per plan.

    Args:
        plans: {label: plan}; a layer that a plan lacks has no bar of its colour.
    """
    layers = compute_by_layer(plans)
    y = np.arange(len(layers))
    height = 0.8 / len(plans)
    with drawing():
        figure, axes = new_axes(height=1.1 + 0.11 * len(y) * (len(plans) + 1))
        for i, (label, plan) in enumerate(plans.items()):
            column = [counts[i] for counts in layers.values()]
            counts = [n for n in column if n is not None]
            name = f"{label}: {plan.compute_crossbars:,}"
            place = y[[n is not None for n in column]] - 0.4 + (i + 0.5) * height
            axes.barh(place, counts, height * 0.92, color=SERIES[i % len(SERIES)], label=name)
        axes.set_yticks(y, [shorten(name) for name in layers])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(y) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.set_xlim(left=0.8)
        axes.xaxis.set_major_locator(LogLocator(10))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("compute crossbars")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        figure.legend(
            loc="outside upper center",
            ncols=min(len(plans), 2),
            handlelength=1.0,
            borderaxespad=0.8,
        )
    return figure
