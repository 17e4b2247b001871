"""The page of a sweep: the frontier, the runs, what survived, what differs."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from crosspruner.reporting.config_diff import config_table
from crosspruner.reporting.frontier import Frontier, frontiers, unbeaten
from crosspruner.reporting.layer_heat import kept_by_layer, layer_heat, survival_share
from crosspruner.reporting.page import REPORT, write_run_report
from crosspruner.reporting.run_folder import RunFolder, find_runs, is_run_folder
from crosspruner.reporting.run_rows import run_columns, shared_settings
from crosspruner.reporting.series import Series, find_series
from crosspruner.reporting.survival import PAGE_PIXELS, survival_maps
from crosspruner.reporting.svg import inline_svg, save_figure
from crosspruner.reporting.sweep_table import SUMMARY, sweep_table, write_sweep_summary
from crosspruner.reporting.templating import count, percent, render

FIGURES = "figures"
"""Folder beside the page that holds its figures as SVG and PNG, and their numbers as CSV."""

MAX_SERIES = 16
"""Series whose layers are shown; the frontier and the table hold all of them."""

MAX_BEST = 12
"""Unbeaten runs listed per family and crossbar."""

_STATUS = {"done": "done", "failed": "failed", "unfinished": "not finished"}


def write_sweep_report(folder: Path | str) -> Path:
    """Write the page of a sweep, its figures, `summary.csv`, and each run's page if it lacks one.

    Args:
        folder: A sweep, any folder above run folders, or one run folder (whose own page is then
            written). Runs may have failed or be unfinished.

    Returns:
        Path of the page, `report.html` in `folder`.

    Raises:
        RunFolderError: If the folder does not exist or no run is in it.
    """
    folder = Path(folder)
    if folder.is_dir() and is_run_folder(folder):
        return write_run_report(folder)
    runs = find_runs(folder)
    for run in runs:
        if not (run.path / REPORT).is_file():
            write_run_report(run.path)
    table = sweep_table(runs, folder)
    write_sweep_summary(folder)
    series = find_series(table, runs)
    links = [quote(f"{name}/{REPORT}") for name in table["run"]]
    names = dict(zip(links, map(_name, table.to_dict("records")), strict=True))
    figures = folder / FIGURES
    columns = list(run_columns(table, runs))
    return render(
        "sweep.html.j2",
        folder / REPORT,
        name=folder.resolve().name,
        counts={status: int((table["status"] == status).sum()) for status in _STATUS},
        status_names=_STATUS,
        facts=shared_settings(table),
        fronts=[
            _front(front, f"front{i}", names, figures)
            for i, front in enumerate(frontiers(series, links.__getitem__))
        ],
        best=[
            _best(list(alike), links)  # crossbars of unlike sizes cannot be counted against another
            for _, alike in groupby(series, key=lambda s: (s.family, s.crossbar))
        ],
        seeds=any((one.groups["seeds"] > 1).any() for one in series),
        layers=[
            _layers(one, f"heat{i}", runs, figures) for i, one in enumerate(series[:MAX_SERIES])
        ],
        series_left_out=max(0, len(series) - MAX_SERIES),
        columns=columns,
        rows=[
            {**record, "link": link, "position": i}
            for i, (record, link) in enumerate(zip(table.to_dict("records"), links, strict=True))
        ],
        configs=config_table(runs),
        summary=SUMMARY,
        problems=[f"{run.path.name}: {problem}" for run in runs for problem in run.problems],
    )


def _name(record: dict[Any, Any]) -> str:
    if record["status"] != "done":
        return str(record["run"])
    accuracy, saved = percent(record["accuracy"]), percent(record["compute_saved"])
    return f"{record['run']}: {accuracy} at {saved} saved"


def _front(front: Frontier, prefix: str, names: dict[str, str], folder: Path) -> dict[str, Any]:
    ends = front.data.sort_values("saved").groupby("series", sort=False).last()
    described = "; ".join(
        f"{label}: {percent(end['accuracy'])} at {percent(end['saved'])} saved"
        for label, end in ends.to_dict("index").items()
    )
    title = f"Accuracy against compute crossbars saved, {front.title}"
    words = f"The far end of each line: {described}. All points are in the table of runs."
    return {
        "title": front.title,
        "svg": Markup(inline_svg(front.figure, prefix, title, words, names)),
        "files": _files(front.figure, front.data, folder, f"frontier-{front.title}"),
    }


def _best(series: Sequence[Series], links: Sequence[str]) -> dict[str, Any]:
    methods = {position: one.label for one in series for position in one.runs.index}
    best = unbeaten(series)
    rows = [
        {
            "run": record["run"],
            "link": links[position],
            "method": methods[position],
            "crossbars": count(record["compute_crossbars"]),
            "saved": percent(record["compute_saved"]),
            "accuracy": percent(record["accuracy"]),
        }
        for position, record in zip(best.index.tolist(), best.to_dict("records"), strict=True)
    ]
    return {
        "title": f"{series[0].family}, {series[0].crossbar}",
        "crossbar": series[0].crossbar,
        "rows": rows[:MAX_BEST],
        "left_out": len(rows) - MAX_BEST,
    }


def _layers(series: Series, prefix: str, runs: Sequence[RunFolder], folder: Path) -> dict[str, Any]:
    kept = kept_by_layer(series, runs)
    title = f"{series.family}, {series.label}"
    shares = survival_share(series, runs)
    shown: dict[str, Any] = {
        "title": title,
        "count": len(series.runs),
        "svg": None,
        "files": [],
        "maps": survival_maps(shares, list(kept.index), 2 * PAGE_PIXELS // MAX_SERIES),
    }
    if not kept.empty:
        figure = layer_heat(kept)
        words = f"Fraction of compute crossbars kept per layer, from {kept.columns[0]} saved in all"
        words += f" to {kept.columns[-1]}; the numbers are in the CSV file."
        shown["svg"] = Markup(inline_svg(figure, prefix, f"Layers of {title}", words))
        data = kept.rename_axis("layer").reset_index()
        shown["files"] = _files(figure, data, folder, f"layers-{title}")
    return shown


def _files(figure: Figure, data: pd.DataFrame, folder: Path, title: str) -> list[str]:
    stem = folder / re.sub(r"[^\w.=+-]+", "-", title)
    paths = save_figure(figure, stem)
    numbers = stem.with_name(f"{stem.name}.csv")
    data.to_csv(numbers, index=False)
    return [quote(f"{FIGURES}/{path.name}") for path in (numbers, *paths)]
