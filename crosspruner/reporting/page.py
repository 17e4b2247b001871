"""The page of one run: `report.html`, complete in itself."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from markupsafe import Markup

from crosspruner.reporting.cost import (
    cost_by_event,
    cost_rows,
    energy_bars,
    event_name,
    significant,
)
from crosspruner.reporting.figures import TRAINING_FIGURES, crossbar_bars, training_curves
from crosspruner.reporting.page_layers import layer_headings, layer_rows
from crosspruner.reporting.run_folder import RunFolder
from crosspruner.reporting.survival import survival_maps
from crosspruner.reporting.svg import inline_svg
from crosspruner.reporting.templating import count, duration, number, percent, points, render

REPORT = "report.html"

_FACTS = (
    ("crossbar", "crossbar"),
    ("mapping", "mapping"),
    ("grain", "grain"),
    ("ratio", "ratio"),
    ("solver", "solver"),
    ("procedure", "procedure"),
    ("budget", "budget"),
    ("seed", "seed"),
)

_FILES = (
    "summary.json",
    "metrics.csv",
    "crossbars.csv",
    "cost.csv",
    "mapping.json",
    "config_tree.txt",
    "train.log",
)


def write_run_report(run_dir: Path | str) -> Path:
    """Write the page of one run: `report.html` in its folder.

    Whatever the run left behind is shown; what is missing is left out, so the page also serves
    a run that failed or was stopped.

    Args:
        run_dir: The run folder.

    Returns:
        Path of the page.

    Raises:
        RunFolderError: If `run_dir` is not a run folder.
    """
    run = RunFolder(Path(run_dir))
    layers = run.layers
    bars = crossbar_bars(layers)
    rows, totals = layer_rows(layers)
    return render(
        "run.html.j2",
        run.path / REPORT,
        run=run,
        facts=[(name, run.fact(key)) for key, name in _FACTS if run.fact(key) is not None],
        wall=duration(run.summary.get("wall_seconds")),
        headline=list(_headline(run)),
        bars=Markup(inline_svg(bars, "bars", "Compute crossbars per layer", _bars_text(layers)))
        if bars is not None
        else None,
        curves=list(_curves(run)),
        costs=cost_rows(run.costs) if not run.costs.empty else [],
        cost_name=run.fact("cost"),
        energy=_energy(run),
        maps=survival_maps(run.masks, [str(name) for name in layers["layer"]]),
        maps_note=_maps_note(run),
        columns=layer_headings(layers) if rows else [],
        rows=rows,
        totals=totals,
        command=shlex.join(["python", "train.py", *run.overrides]) if run.config else "",
        config=yaml.safe_dump(run.config, sort_keys=False, width=88) if run.config else "",
        files=[name for name in _FILES if (run.path / name).is_file()],
    )


def _headline(run: RunFolder) -> Iterator[dict[str, Any]]:
    summary = run.summary
    layers = run.layers
    accuracy, dense_accuracy = (number(summary.get(k)) for k in ("accuracy", "dense_accuracy"))
    if accuracy is not None:
        lost = None if dense_accuracy is None else accuracy - dense_accuracy
        yield {
            "name": "Test accuracy",
            "before": None if dense_accuracy is None else percent(dense_accuracy),
            "value": percent(accuracy),
            "gauge": accuracy,
            "note": "after pruning" if lost is None else f"{points(lost)} against dense",
        }
    chip = number(summary.get("device_accuracy"))
    if chip is not None:
        spread = points(summary.get("device_accuracy_spread")).lstrip("+")
        yield {
            "name": f"On {summary.get('device')}",
            "before": None,
            "value": percent(chip),
            "gauge": chip,
            "note": f"test accuracy, spread of {count(summary.get('device_chips'))} chips {spread}",
        }
    dense, kept = (number(summary.get(k)) for k in ("compute_crossbars_dense", "compute_crossbars"))
    if dense is None and layers["compute_dense"].notna().any():
        dense, kept = float(layers["compute_dense"].sum()), float(layers["compute"].sum())
    if dense and dense == kept and run.status != "done":
        yield {
            "name": "Compute crossbars",
            "before": None,
            "value": count(dense),
            "gauge": None,
            "note": "of the dense network",
        }
    elif dense and kept is not None:
        yield {
            "name": "Compute crossbars",
            "before": count(dense),
            "value": count(kept),
            "gauge": kept / dense,
            "note": f"{percent(kept / dense)} are left",
        }
        asked = number(run.fact("ratio"))
        yield {
            "name": "Compute crossbars saved",
            "before": None,
            "value": percent(1 - kept / dense),
            "gauge": 1 - kept / dense,
            "note": f"{count(dense - kept)} crossbars"
            + ("" if asked is None else f"; {percent(asked)} asked for"),
        }
    dense, kept = (number(summary.get(k)) for k in ("total_crossbars_dense", "total_crossbars"))
    if dense and kept is not None:
        yield {
            "name": "All crossbars",
            "before": count(dense),
            "value": count(kept),
            "gauge": kept / dense,
            "note": f"{percent(1 - kept / dense)} saved, with reduction and buffer",
        }


def _bars_text(layers: pd.DataFrame) -> str:
    pairs = layers[["layer", "compute_dense", "compute"]].dropna().itertuples(index=False)
    listed = "; ".join(
        f"{name}: {count(before)} to {count(after)}" for name, before, after in pairs
    )
    return f"Dense and pruned compute crossbars: {listed}."


def _curves(run: RunFolder) -> Iterator[tuple[str, Markup]]:
    metrics = run.metrics
    for spec in TRAINING_FIGURES:
        figure = training_curves(metrics, spec, number(run.fact("ratio")))
        if figure is None:
            continue
        last = "; ".join(
            f"{line.label} ends at {_shown(metrics[line.column].dropna().iloc[-1], spec.percent)}"
            for line in spec.lines
            if line.column in metrics and metrics[line.column].notna().any()
        )
        yield spec.title, Markup(inline_svg(figure, spec.name, f"{spec.title} in training", last))


def _energy(run: RunFolder) -> Markup | None:
    figure = energy_bars(run.costs)
    if figure is None:
        return None
    sums = cost_by_event(run.costs, "energy")
    text = "; ".join(
        f"{event_name('energy', row['event'])}: {significant(row['cost_dense'] * 1e-6)} to "
        f"{significant(row['cost'] * 1e-6)} microjoule"
        for row in sums.to_dict("records")
    )
    return Markup(inline_svg(figure, "energy", "Energy per image, dense and pruned", f"{text}."))


def _shown(value: float, as_percent: bool) -> str:
    return percent(value) if as_percent else f"{value:.4g}"


def _maps_note(run: RunFolder) -> str:
    unit = "one output" if run.fact("grain") == "column" else "one group of outputs"
    return (
        f"Each picture is one layer: a row is {unit}, a column one group of inputs. "
        "Filled parts keep their crossbars, empty parts are pruned away."
    )
