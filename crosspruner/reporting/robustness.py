"""Accuracy against the flaws of a device, network by network: table and picture."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from crosspruner.reporting.svg import PALETTE, SERIES, drawing

TITLES = {
    "bits": "bits of a weight",
    "sigma": "sigma of w exp(theta)",
    "faults": "share of stuck cells",
    "adc": "bits of the ADC",
}
"""Effects that are swept, and what their axis says."""

PAPER_KNEES = {"bits": 5.0, "sigma": 0.1}
"""Where Liang et al., IEEE Access 2018, see pruned VGG8 begin to lose."""


def summarise(chips: pd.DataFrame) -> pd.DataFrame:
    """One row per network, effect and value: mean, standard deviation, worst, chips, images.

    Args:
        chips: a row per chip: network, effect, value, seed, accuracy, images.
    """
    found = chips.groupby(["network", "effect", "value"], sort=False).agg(
        accuracy=("accuracy", "mean"),
        spread=("accuracy", lambda each: each.std(ddof=0)),
        worst=("accuracy", "min"),
        chips=("accuracy", "size"),
        images=("images", "first"),
    )
    return found.reset_index()


def robustness_figure(chips: pd.DataFrame, networks: Sequence[str] | None = None) -> Figure:
    """A panel per effect, a line per network, a band of one standard deviation over the chips.

    Args:
        chips: as `summarise` takes it.
        networks: which, in this order; None = all.
    """
    found = summarise(chips)
    networks = list(found["network"].unique()) if networks is None else list(networks)
    effects = [effect for effect in TITLES if effect in set(found["effect"])]
    rows = -(-len(effects) // 2)
    with drawing():
        figure = Figure(figsize=(5.2, 0.6 + 2.4 * rows), layout="constrained")
        grid = figure.subplots(rows, min(len(effects), 2), squeeze=False, sharey=True)
        for axes, effect in zip(grid.flat, effects, strict=False):
            for i, network in enumerate(networks):
                line = found[(found["network"] == network) & (found["effect"] == effect)]
                line = line.sort_values("value")
                mean, spread = line["accuracy"], line["spread"]
                colour = SERIES[i % len(SERIES)]
                axes.plot(line["value"], mean, color=colour, marker="o", markersize=3)
                axes.fill_between(
                    line["value"], mean - spread, mean + spread, color=colour, alpha=0.15, lw=0
                )
            if effect in PAPER_KNEES:
                axes.axvline(
                    PAPER_KNEES[effect], color=PALETTE["muted"], linestyle=(0, (3, 2)), lw=1
                )
            if effect in ("bits", "adc"):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel(TITLES[effect])
            axes.grid(axis="y")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axes in grid.flat[len(effects) :]:
            axes.set_visible(False)
        handles = grid.flat[0].lines[: len(networks)]
        figure.legend(handles, networks, loc="outside upper left", ncols=min(len(networks), 3))
    return figure
