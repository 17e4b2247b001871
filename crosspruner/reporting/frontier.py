"""The frontier: accuracy against crossbars saved, one line per grain, method and crossbar."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from crosspruner.reporting.series import Series
from crosspruner.reporting.svg import PALETTE, SERIES, drawing, new_axes

MAX_LINES = 6
"""More lines than this in one plot are told apart by crossbar: one plot each."""

_DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.5)))


@dataclass(frozen=True)
class Frontier:
    """One plot and the numbers in it."""

    title: str
    figure: Figure
    data: pd.DataFrame
    """A row per mark: series, ratio, crossbars saved, accuracy, spread, seeds."""


def frontiers(series: Sequence[Series], link: Callable[[int], str]) -> Iterator[Frontier]:
    """Draw the frontier of every family of runs.

    Args:
        series: All lines of the sweep.
        link: Position of a run in the sweep table -> address of its page; its mark links there.

    Yields:
        One plot per family; per family and crossbar where there are many lines.
    """
    for family in dict.fromkeys(s.family for s in series):
        members = [s for s in series if s.family == family]
        crossbars = list(dict.fromkeys(s.crossbar for s in members))
        # One method keeps one colour over all plots of its family.
        split = len(members) > MAX_LINES and len(crossbars) > 1
        names = list(dict.fromkeys(s.method if split else s.label for s in members))
        styles = {
            name: (SERIES[i % len(SERIES)], _DASHES[i // len(SERIES) % len(_DASHES)])
            for i, name in enumerate(names)
        }
        limits = _limits(members)
        for crossbar in crossbars if split else [""]:
            drawn = [s for s in members if not split or s.crossbar == crossbar]
            labels = [s.method if split or len(crossbars) == 1 else s.label for s in drawn]
            chosen = [styles[s.method if split else s.label] for s in drawn]
            figure = _draw(drawn, labels, chosen, limits, link)
            title = f"{family}, {crossbar}" if split else family
            yield Frontier(title, figure, _numbers(drawn))


def _draw(
    series: Sequence[Series],
    labels: Sequence[str],
    styles: Sequence[tuple],
    limits: tuple[tuple[float, float], tuple[float, float]],
    link: Callable[[int], str],
) -> Figure:
    columns = 2 if max(map(len, labels)) < 24 else 1
    with drawing():
        figure, axes = new_axes(height=3.1 + 0.17 * -(-len(labels) // columns))
        for one, label, (colour, dash) in zip(series, labels, styles, strict=True):
            line = one.line
            axes.plot(line["saved"], line["accuracy"], color=colour, linestyle=dash, label=label)
            spread = one.groups[one.groups["seeds"] > 1]
            axes.errorbar(
                spread["saved"],
                spread["accuracy"],
                yerr=spread["accuracy_std"],
                fmt="none",
                ecolor=colour,
                elinewidth=1.2,
                capsize=2.5,
            )
            single = (one.groups["seeds"] == 1).all()
            marks = axes.scatter(
                one.runs["compute_saved"],
                one.runs["accuracy"],
                s=26 if single else 14,
                color=colour,
                alpha=1.0 if single else 0.7,
                linewidths=0,
                zorder=3,
            )
            marks.set_urls([link(i) for i in one.runs.index])
        dense = pd.concat([s.runs["dense_accuracy"] for s in series]).mean()
        if pd.notna(dense):
            axes.axhline(dense, color=PALETTE["muted"], linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                "dense",
                (1, dense),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=9,
                color=PALETTE["muted"],
            )
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
        axes.set_xlabel("compute crossbars saved")
        axes.set_ylabel("test accuracy")
        axes.grid()
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%"))
        figure.legend(loc="outside upper left", ncols=columns)
    return figure


def _limits(series: Sequence[Series]) -> tuple[tuple[float, float], tuple[float, float]]:
    runs = pd.concat([s.runs for s in series])
    saved = runs["compute_saved"]
    accuracy = pd.concat([runs["accuracy"], runs["dense_accuracy"]]).dropna()
    margin = max(0.06 * (accuracy.max() - accuracy.min()), 0.002)
    return (
        (max(saved.min() - 0.05, -0.02), min(saved.max() + 0.05, 1.02)),
        (accuracy.min() - margin, accuracy.max() + 2 * margin),
    )


def unbeaten(series: Sequence[Series]) -> pd.DataFrame:
    """Runs that no other beats in both accuracy and crossbars left.

    Args:
        series: of one family and one crossbar, so that the numbers can be compared.

    Returns:
        Rows of the sweep table, from few to many compute crossbars.
    """
    runs = pd.concat([s.runs for s in series])
    runs = runs.sort_values(["compute_crossbars", "accuracy"], ascending=[True, False])
    best_so_far = runs["accuracy"].cummax().shift(fill_value=-1.0)
    return runs[runs["accuracy"] > best_so_far]


def _numbers(series: Sequence[Series]) -> pd.DataFrame:
    parts = []
    for one in series:
        part = one.groups.drop(columns="members")
        part.insert(0, "series", one.label)
        parts.append(part.assign(on_line=one.groups.index.isin(one.line.index)))
    return pd.concat(parts, ignore_index=True)
