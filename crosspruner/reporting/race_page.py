"""The page of a race: its table, who is ahead, the paper's figures, each network's frontier."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from crosspruner.reporting.race import largest_saving, percent, standings, top, with_spread
from crosspruner.reporting.solver_table import solver_table
from crosspruner.reporting.svg import PALETTE, SERIES, drawing, new_axes, save_figure

OURS = ("lgd_rpp", "lgd_rpp_uniform", "lgd_rpp_step", "both", "liang2018")
"""Methods built on LGD with RPP."""

PAPER = {"vgg8": 0.721, "vgg16": 0.598, "resnet18": 0.442}
"""Compute crossbars saved with little accuracy lost, Liang et al. 2018, Table III; the latter two
on ImageNet."""

_DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.5)))


FURTHER = {
    "headline": "Ours, trained as long again as the dense network, which gives half of the loss:",
    "claims": "Ours at other grains and orders, trained as the others:",
}
"""Tables beside the race: part of `race_runs` -> what stands above it."""


def race_page(runs: pd.DataFrame, out: Path, command: str, versions: str) -> str:
    """Write the plots of a race beside its page.

    Args:
        runs: of `race_runs`.
        out: where the page will be; its plots go into a folder of its name, without suffix.
        command: what made the runs.
        versions: of the software that did.

    Returns:
        The page, Markdown.
    """
    race = standings(runs[runs["part"] == "race"])
    rows = standings(runs[runs["part"] != "oneshot"])
    parts = ["# The race\n\nWritten by `scripts/race_table.py` from the run folders; not by hand."]
    for network in sorted(set(runs["network"])):
        own, raced = rows[rows["network"] == network], race[race["network"] == network]
        untrained = standings(runs[(runs["network"] == network) & (runs["part"] == "oneshot")])
        first = top(own if len(own) else untrained, "seeds")
        parts.append(
            f"## {network}\n\nDense {percent(first['dense'])}, {first['compute_dense']:,.0f} "
            f"compute crossbars, {first['total_dense']:,.0f} in all. All methods start from this "
            "network, train for the same number of epochs on the same data, and are counted on "
            "the same crossbars; ± is the standard deviation over the seeds."
        )
        if len(raced):
            parts += [_table(raced), "\n".join(_ahead(raced))]
        if len(own):
            parts.append("\n".join(_against_the_paper(own, network)))
        for part, title in FURTHER.items():
            variants = standings(runs[(runs["network"] == network) & (runs["part"] == part)])
            if len(variants):
                parts += [title, _table(variants, True)]
        if len(untrained):
            parts.append(solver_table(untrained))
        if own.empty:
            continue
        figure = frontier(own)
        saved = save_figure(figure, out.with_suffix("") / network)
        address = saved[0].relative_to(out.parent).as_posix()
        parts.append(f"![Accuracy against compute crossbars saved, {network}]({address})")
    parts.append(f"## How it was made\n\n{versions}\n\n```bash\n{command}\n```")
    return "\n\n".join(parts) + "\n"


def _table(table: pd.DataFrame, variants: bool = False) -> str:
    further = " grain | order |" if variants else ""
    lines = [
        f"| method |{further} asked for | before fine-tuning | after | drop, points "
        "| compute crossbars | saved | all crossbars | minutes | seeds |",
        "|---|" + "---|" * (further.count("|") + 9),
    ]
    for row in table.to_dict("records"):
        own = f" {row['grain']} | {row['reorder']} |" if variants else ""
        name = f"**{row['method']}**" if row["method"] in OURS else row["method"]
        lines.append(
            f"| {name} |{own} {row['ratio']:.1%} | {with_spread(row, 'before')} "
            f"| {with_spread(row, 'after')} | {100 * row['drop']:.2f} "
            f"| {row['compute']:,.0f} | {row['saved']:.2%} | {row['total']:,.0f} "
            f"| {row['minutes']:.1f} | {row['seeds']} |"
        )
    return "\n".join(lines)


def _ahead(table: pd.DataFrame) -> list[str]:
    """Who is first at each ratio, in words, and how far our best is from the best of the others."""
    lines = []
    for ratio in sorted(set(table["ratio"])):
        rows = table[table["ratio"] == ratio]
        # A method that was free to save less than asked for is not compared with those that did.
        equal = rows[rows["saved"] >= ratio - 0.01]
        ours, others = equal[equal["method"].isin(OURS)], equal[~equal["method"].isin(OURS)]
        if ours.empty or others.empty:
            continue
        us, them = top(ours, "after"), top(others, "after")
        points = 100 * (us["after"] - them["after"])
        if round(points, 2) == 0:
            verdict = f"level with {them['method']}"
        elif points > 0:
            verdict = f"{points:.2f} points ahead of {them['method']}, the best of the others"
        else:
            verdict = f"{-points:.2f} points behind {them['method']}"
        lines.append(f"- At {ratio:.1%}: {us['method']}, the best of ours, is {verdict}.")
    return lines


def _against_the_paper(table: pd.DataFrame, network: str) -> list[str]:
    lines = []
    claim = PAPER.get(network, PAPER["resnet18"])
    which = network if network in PAPER else "ResNet18 (this network is not in the paper)"
    reached = table[table["saved"] >= claim - 0.0005]
    lines.append(f"- The paper saves {claim:.1%} of the compute crossbars of {which}.")
    if len(reached):
        row = top(reached, "after")
        lines[-1] += (
            f" Here {row['method']} at {row['grain']} grain saves {row['saved']:.2%} and drops "
            f"{100 * row['drop']:.2f} points."
        )
    else:
        lines[-1] += " No run here saves as much."
    for points in (0.5, 1.0):
        best = largest_saving(table, points)
        found = (
            "none"
            if best is None
            else (f"{best['saved']:.2%} ({best['method']}, {best['grain']} grain)")
        )
        lines.append(f"- Largest saving at a drop of {points:g} points or less: {found}.")
    return lines


def frontier(table: pd.DataFrame) -> Figure:
    """Accuracy after fine-tuning against compute crossbars saved, a line per method and grain.

    Args:
        table: rows of one network from `standings`.
    """
    # Of several orders and lengths of training of one method at one ratio, the best stands for it.
    best = table.sort_values("after", ascending=False).drop_duplicates(["method", "grain", "ratio"])
    lines = list(best.groupby(["method", "grain"]))
    with drawing():
        figure, axes = new_axes(height=3.6 + 0.17 * -(-len(lines) // 3))
        for index, ((method, grain), rows) in enumerate(lines):
            rows = rows.sort_values("saved")
            axes.errorbar(
                rows["saved"],
                rows["after"],
                yerr=rows["after_spread"],
                label=method if grain == "column" else f"{method}, {grain} grain",
                color=SERIES[index % len(SERIES)],
                linestyle=_DASHES[index // len(SERIES) % len(_DASHES)],
                linewidth=2.2 if method in OURS else 1.2,
                marker="o",
                markersize=4,
                capsize=2.5,
            )
        axes.axhline(table["dense"].mean(), color=PALETTE["muted"], linewidth=1, linestyle=":")
        axes.set_xlabel("compute crossbars saved")
        axes.set_ylabel("test accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%"))
        axes.grid()
        figure.legend(loc="outside upper left", ncols=3)
    return figure
