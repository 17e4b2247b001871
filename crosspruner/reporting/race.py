"""A reproduction read from its run folders: a row for each way of pruning a network."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crosspruner.errors import RunFolderError
from crosspruner.reporting.run_folder import RunFolder, find_runs

KEYS = ["network", "part", "method", "solver", "refit", "budget", "grain", "reorder", "ratio"]
"""What tells one row from another; runs that differ in nothing else differ in their seed."""

_MEASURED = {
    "before": "oneshot_accuracy",
    "after": "accuracy",
    "drop": "accuracy_drop",
    "saved": "compute_saved",
    "total_saved": "total_saved",
    "compute": "compute_crossbars",
    "total": "total_crossbars",
    "minutes": "wall_seconds",
}


def race_runs(folder: str | Path) -> pd.DataFrame:
    """The finished runs of `scripts/reproduce.sh`.

    Args:
        folder: OUT of that script; OUT/NETWORK/PART/JOB hold the runs.

    Returns:
        A row per run: KEYS (part is "race", "headline", "claims" or "oneshot"; refit is whether
        weights were refitted in closed form), seed, dense, compute_dense, total_dense, and before,
        after, drop (accuracies, 0 to 1), saved, total_saved, compute, total, minutes.

    Raises:
        RunFolderError: no run there has ended.
    """
    rows = [row for run in find_runs(Path(folder)) for row in _row(run, Path(folder))]
    if not rows:
        raise RunFolderError(
            f"{folder} holds no finished run of a race: give the OUT of scripts/reproduce.sh"
        )
    return pd.DataFrame(rows)


def _row(run: RunFolder, folder: Path) -> Iterable[dict]:
    place = run.path.relative_to(folder).parts
    if run.status != "done" or len(place) != 3 or "method" not in run.summary:
        return
    found = run.summary
    network, part, _ = place
    yield {
        **{"network": network, "part": part, "seed": found["seed"]},
        **{key: found[key] for key in ("method", "solver", "budget", "grain", "reorder", "ratio")},
        "refit": bool(run.config.get("procedure", {}).get("refit", False)),
        "dense": found["dense_accuracy"],
        "compute_dense": found["compute_crossbars_dense"],
        "total_dense": found["total_crossbars_dense"],
        **{name: found[key] for name, key in _MEASURED.items()},
        "minutes": found["wall_seconds"] / 60,
    }


def standings(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over the seeds.

    Args:
        runs: of `race_runs`.

    Returns:
        A row per KEYS in the order of the accuracy after fine-tuning, best first, within network
        and ratio: the means of all figures, `seeds`, and `before_spread`, `after_spread` (standard
        deviation over the seeds, of n; 0 for one seed).
    """
    once = runs.drop_duplicates([*KEYS, "seed"])
    groups = once.groupby(KEYS, sort=False)
    figures = ["dense", "compute_dense", "total_dense", *_MEASURED]
    table = groups[figures].mean()
    table["seeds"] = groups.size()
    for name in ("before", "after"):
        table[f"{name}_spread"] = groups[name].std(ddof=0)
    table = table.reset_index()
    return table.sort_values(
        ["network", "ratio", "after"], ascending=[True, True, False], ignore_index=True
    )


def missing_rows(
    table: pd.DataFrame,
    networks: Sequence[str],
    methods: Sequence[str],
    ratios: Sequence[float],
) -> list[str]:
    """Rows that were asked for and are not in a table of `standings`, in words."""
    there = set(zip(table["network"], table["method"], table["ratio"], strict=True))
    return [
        f"{network} {method} {ratio:g}"
        for network in networks
        for method in methods
        for ratio in ratios
        if (network, method, ratio) not in there
    ]


def percent(accuracy: float | None) -> str:
    """An accuracy, 0 to 1, in words where it is not known."""
    return "unknown" if accuracy is None or pd.isna(accuracy) else f"{accuracy:.2%}"


def with_spread(row: Mapping[Any, Any], name: str) -> str:
    """A mean accuracy of a row of `standings`, "before" or "after", with its spread over seeds."""
    shown = percent(row[name])
    return f"{shown} ± {100 * row[f'{name}_spread']:.2f}" if row["seeds"] > 1 else shown


def top(table: pd.DataFrame, by: str) -> dict[str, Any]:
    """The row with the largest value in a column; the first of equals."""
    return table.sort_values(by, ascending=False, kind="stable").to_dict("records")[0]  # type: ignore[return-value]


def largest_saving(table: pd.DataFrame, points: float) -> dict[str, Any] | None:
    """The row of `standings` that saves most at a mean drop of at most `points` (1 = 0.01)."""
    fits = table[table["drop"] <= points / 100 + 1e-9]
    return None if fits.empty else top(fits, "saved")
