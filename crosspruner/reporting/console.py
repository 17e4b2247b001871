"""The table printed at the end of a run: crossbars per layer, before and after."""

import pandas as pd
from rich import get_console
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosspruner.reporting.templating import count


def crossbar_table(layers: pd.DataFrame, title: str = "Crossbars per layer") -> Table:
    """The layer table for a terminal.

    Args:
        layers: What `layer_table` returns for the pruned plan; or `crossbars.csv`.
        title: Heading.
    """
    table = Table(title=title, title_justify="left", title_style="bold", show_footer=True)
    dense, kept = layers["compute_dense"].sum(), layers["compute"].sum()
    table.add_column("layer", "sum", overflow="fold")
    for heading, footer in (
        ("in", ""),
        ("out", ""),
        ("Kin", ""),
        ("Kout", ""),
        ("dense", count(dense)),
        ("kept", count(kept)),
        ("saved", _percent(1 - kept / dense) if dense else ""),
        ("reduction", count(layers["reduction"].sum())),
        ("buffer", count(layers["buffer"].sum())),
    ):
        table.add_column(heading, footer, justify="right", no_wrap=True)
    for row in layers.to_dict("records"):
        pruned = str(row["prunable"]).lower() != "false"
        table.add_row(
            Text(str(row["layer"])),  # Text: a name such as "[0]" is no markup
            count(row["in_fms"]),
            count(row["out_fms"]),
            count(row["kin"]),
            count(row["kout"]),
            count(row["compute_dense"]),
            count(row["compute"]),
            _percent(row["saved"]) if pruned else "kept whole",
            count(row["reduction"]),
            count(row["buffer"]),
            style=None if pruned else "dim",
        )
    return table


def budget_line(layers: pd.DataFrame, ratio: float) -> str:
    """What was asked for and what was reached, in one line.

    Args:
        layers: As for `crossbar_table`.
        ratio: Fraction of the compute crossbars that was to be removed, 0 to 1.
    """
    dense, kept = int(layers["compute_dense"].sum()), int(layers["compute"].sum())
    reached = 1 - kept / dense if dense else 0.0
    return (
        f"{count(dense)} compute crossbars -> {count(kept)}: {_percent(reached)} saved, "
        f"{_percent(ratio)} asked for"
    )


def print_crossbars(
    layers: pd.DataFrame, ratio: float | None = None, console: Console | None = None
) -> None:
    """Print the layer table, and the budget line where `ratio` is given."""
    console = console or get_console()  # the one that a running progress bar knows of
    if not console.is_terminal:  # a log has no width of its own, and names must stay whole
        console.width = max(console.width, 120)
    console.print(crossbar_table(layers))
    if ratio is not None:
        console.print(budget_line(layers, ratio), highlight=False)


def _percent(fraction: float) -> str:
    # A terminal may know no narrow space: unlike the page, plain ASCII.
    return f"{fraction:.1%}"
