"""Configurations of many runs, stored so that any two can be compared in the browser."""

import json
from collections.abc import Sequence
from typing import Any

from crosspruner.reporting.run_folder import RunFolder

_IGNORED = ("paths", "hydra", "overrides")
"""Differ in every run, and say nothing."""


def config_table(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """The settings in which runs differ, each value stored once.

    Args:
        runs: The runs.

    Returns:
        `keys`: dotted names of the settings that are not the same in all runs;
        `values`: per key, the values that occur, as text;
        `runs`: per run and key, the position in `values`, or -1 where the run lacks the key;
        `same`: how many settings are the same in all runs.
    """
    configs = [
        {key: _text(value) for key, value in flatten(run.config).items() if not _skipped(key)}
        for run in runs
    ]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    values: list[list[str]] = []
    columns: list[list[int]] = []
    for key in differing:
        positions: dict[str, int] = {}
        column = [
            positions.setdefault(config[key], len(positions)) if key in config else -1
            for config in configs
        ]
        values.append(list(positions))
        columns.append(column)
    return {
        "keys": differing,
        "values": values,
        "runs": [list(row) for row in zip(*columns, strict=True)] if columns else [],
        "same": len(keys) - len(differing),
    }


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> one level with dotted keys; lists and scalars are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _skipped(key: str) -> bool:
    return key.split(".")[0] in _IGNORED


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
