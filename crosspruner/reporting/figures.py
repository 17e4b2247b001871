"""The figures of one run: crossbars per layer, and the training curves with their phases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from crosspruner.reporting.run_folder import PHASES
from crosspruner.reporting.svg import PALETTE, drawing, new_axes

MAX_POINTS = 160
"""Points per curve; longer series are averaged in equal bins of steps."""


@dataclass(frozen=True)
class Line:
    """One curve of a training figure."""

    column: str
    """Column of `metrics.csv`."""
    label: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Curves:
    """One training figure: its name, its y axis and its curves."""

    name: str
    title: str
    lines: tuple[Line, ...]
    percent: bool = False
    hide_zero: bool = False
    """Not drawn as long as all of it is zero: a run that has not begun to prune."""
    shows_target: bool = False
    """Whether the ratio that was asked for is drawn as a level line."""


TRAINING_FIGURES = (
    Curves(
        "accuracy",
        "Accuracy",
        (
            Line("train/acc", "training", PALETTE["muted"]),
            Line("val/acc", "validation", PALETTE["keep"]),
        ),
        percent=True,
    ),
    Curves(
        "loss",
        "Loss",
        (
            Line("train/loss", "training", PALETTE["muted"]),
            Line("val/loss", "validation", PALETTE["keep"]),
        ),
    ),
    Curves(
        "ratio",
        "Crossbars removed",
        (Line("prune/ratio", "removed", PALETTE["keep"]),),
        percent=True,
        hide_zero=True,
        shows_target=True,
    ),
    Curves(
        "mask",
        "Mask",
        (
            Line("prune/relax", "relaxation", PALETTE["muted"], dashed=True),
            Line("prune/mask_churn", "groups changed", PALETTE["warm"]),
        ),
        percent=True,
        hide_zero=True,
    ),
)


def crossbar_bars(layers: pd.DataFrame) -> Figure | None:
    """Compute crossbars per layer, before (outline) and after (filled).

    Args:
        layers: Layer table with the columns of `crossbars.csv`.

    Returns:
        The figure, or None where no layer is known.
    """
    known = layers.dropna(subset=["layer", "compute_dense", "compute"])
    if known.empty:
        return None
    names = [shorten(str(name)) for name in known["layer"]]
    dense = known["compute_dense"].to_numpy(float)
    kept = known["compute"].to_numpy(float)
    y = np.arange(len(names))
    with drawing():
        figure, axes = new_axes(height=0.75 + 0.235 * len(names))
        axes.barh(y, dense, height=0.72, color=PALETTE["ghost"], label="dense")
        axes.barh(y, kept, height=0.72, color=PALETTE["keep"], label="after pruning")
        room = dense.max() or 1.0
        for row, (before, after) in enumerate(zip(dense, kept, strict=True)):
            text = f"{before:,.0f}" if before == after else f"{before:,.0f} \N{RIGHTWARDS ARROW} "
            text += "" if before == after else f"{after:,.0f}"
            axes.text(
                before + 0.015 * room, row, text, va="center", fontsize=9, color=PALETTE["muted"]
            )
        axes.set_yticks(y, names, color=PALETTE["ink"])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, room * 1.3)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("compute crossbars")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper right", ncols=2, handlelength=1.0, handleheight=0.8)
    return figure


def training_curves(
    metrics: pd.DataFrame, spec: Curves, ratio: float | None = None
) -> Figure | None:
    """One training figure with the dense, prune and fine-tune phases shaded.

    Args:
        metrics: `metrics.csv` as a table.
        spec: What to draw; one of `TRAINING_FIGURES`.
        ratio: Fraction of the compute crossbars that was to be removed.

    Returns:
        The figure, or None where there is nothing to draw.
    """
    lines = [line for line in spec.lines if _logged(metrics, line.column)]
    if not lines or (spec.hide_zero and not any(metrics[line.column].any() for line in lines)):
        return None
    per_epoch = steps_per_epoch(metrics)
    with drawing():
        figure, axes = new_axes(height=2.55)
        for line in lines:
            x, y = _series(metrics, line.column)
            axes.plot(
                (x + 1) / per_epoch,
                y,
                color=line.colour,
                label=line.label,
                linestyle=(0, (3, 2)) if line.dashed else "solid",
                marker="o" if len(x) < 3 else None,
                markersize=3.5,
            )
        if spec.shows_target and ratio is not None:
            axes.axhline(
                ratio, color=PALETTE["muted"], linestyle=(0, (3, 2)), lw=1.2, label="asked for"
            )
        _mark_phases(axes, metrics, per_epoch)
        axes.set_xlabel("epoch" if per_epoch > 1 else "step")
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if spec.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def phase_spans(metrics: pd.DataFrame) -> list[tuple[str, float, float]]:
    """Phases of a run as (name, first step, last step), in order of time."""
    if not {"step", "prune/phase"} <= set(metrics.columns):
        return []
    known = metrics[["step", "prune/phase"]].dropna().sort_values("step", kind="stable")
    if known.empty:
        return []
    phase = known["prune/phase"].astype(int).clip(0, len(PHASES) - 1)
    run = (phase != phase.shift()).cumsum()
    starts = known.groupby(run)["step"].min().tolist()
    names = [PHASES[value] for value in phase.groupby(run).first()]
    end = float(metrics["step"].max()) + 1
    return list(zip(names, starts, [*starts[1:], end], strict=True))


def steps_per_epoch(metrics: pd.DataFrame) -> float:
    """Training steps in an epoch, from the last step logged of each; 1 where it is not known."""
    if not {"step", "epoch"} <= set(metrics.columns):
        return 1.0
    known = metrics[["step", "epoch"]].dropna()
    column = next((c for c in ("val/loss", "val/acc") if _logged(metrics, c)), None)
    if column is not None:
        known = metrics.loc[metrics[column].notna(), ["step", "epoch"]].dropna()
    if known.empty:
        return 1.0
    ends = known.groupby("epoch")["step"].max()
    return max(1.0, float(((ends + 1) / (ends.index.to_numpy() + 1)).median()))


def shorten(name: str, limit: int = 22) -> str:
    """Cut the middle out of a long layer name; its end tells layers apart."""
    if len(name) <= limit:
        return name
    head = limit // 4
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[-(limit - head - 1) :]}"


def _logged(metrics: pd.DataFrame, column: str) -> bool:
    return column in metrics and "step" in metrics and bool(metrics[column].notna().any())


def _series(metrics: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    known = metrics[["step", column]].dropna().sort_values("step", kind="stable")
    x, y = known["step"].to_numpy(float), known[column].to_numpy(float)
    if len(x) <= MAX_POINTS:
        return x, y
    bins = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[b].mean() for b in bins]), np.array([y[b].mean() for b in bins])


def _mark_phases(axes: Axes, metrics: pd.DataFrame, per_epoch: float) -> None:
    spans: Sequence[tuple[str, float, float]] = phase_spans(metrics)
    if not spans:
        return
    first, last = spans[0][1] / per_epoch, spans[-1][2] / per_epoch
    axes.set_xlim(min(first, axes.get_xlim()[0], 0), max(last, axes.dataLim.x1))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.16 * (high - low))  # room for the names of the phases
    for name, start, end in spans:
        if name == "prune":
            axes.axvspan(start / per_epoch, end / per_epoch, color=PALETTE["warm"], alpha=0.1, lw=0)
        if end - start < 0.06 * (spans[-1][2] - spans[0][1]):
            continue
        colour = PALETTE["warm"] if name == "prune" else PALETTE["muted"]
        middle = (start + end) / 2 / per_epoch
        axes.text(
            middle,
            0.985,
            name,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=9,
            color=colour,
        )
