"""Reading a run folder: whatever is there, in one object; whatever is not, empty.

A run may have failed, been killed in the middle of a write, or still be going on. The reader
therefore never raises for a missing or broken part: it yields an empty value and notes the
problem in `RunFolder.problems`, so that a report can say what it could not show.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from crosspruner.errors import RunFolderError
from crosspruner.reporting.cost import COST_COLUMNS
from crosspruner.reporting.run_files import (
    LAYER_COLUMNS,
    layers_of_plan,
    read_costs,
    read_json_object,
    read_layers,
    read_metrics,
    read_yaml,
    read_yaml_object,
)

T = TypeVar("T")

PHASES = ("dense", "prune", "fine-tune")
"""Names of the values 0, 1, 2 of the metric `prune/phase`."""

# A file by which a folder is recognised as a run folder; the first one is written by Hydra.
_SIGNS = (".hydra/config.yaml", "summary.json", "DONE", "FAILED")

# A file by which the folder of a sweep is recognised; it has a DONE of its own.
_SIGN_OF_A_SWEEP = "multirun.yaml"


@dataclass
class RunFolder:
    """One run, read from its folder.

    Args:
        path: The run folder.

    Raises:
        RunFolderError: If the folder does not exist or carries no sign of a run.
    """

    path: Path
    problems: list[str] = field(default_factory=list)
    """Parts that are there but cannot be read, one line each; filled as parts are asked for."""

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        if not self.path.is_dir():
            raise RunFolderError(f"{self.path} is not a folder; give the folder of a run.")
        if not is_run_folder(self.path):
            raise RunFolderError(
                f"{self.path} is not a run folder: none of {', '.join(_SIGNS)} is in it; "
                "give a folder such as logs/train/runs/<stamp>."
            )

    def _read(self, name: str, reader: Callable[[Path], T], empty: T) -> T:
        file = self.path / name
        if not file.is_file():
            return empty
        try:
            return reader(file)
        except Exception as error:  # a half-written file can fail in any way its parser has
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.problems.append(f"{name} cannot be read: {reason}")
            return empty

    @cached_property
    def status(self) -> str:
        """`done`, `failed` or `unfinished` (still going on, or killed)."""
        if (self.path / "DONE").exists():
            return "done"
        return "failed" if (self.path / "FAILED").exists() else "unfinished"

    @cached_property
    def failure(self) -> str:
        """Text of `FAILED`, or an empty string where the run did not fail."""
        if self.status != "failed":
            return ""
        return self._read("FAILED", lambda file: file.read_text(errors="replace").strip(), "")

    @property
    def message(self) -> str:
        """First line of the failure: what a table of runs has room for."""
        return self.failure.splitlines()[0] if self.failure else ""

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json`, flat."""
        return self._read("summary.json", read_json_object, {})

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed configuration, interpolations left as written."""
        return self._read(".hydra/config.yaml", read_yaml_object, {})

    @cached_property
    def overrides(self) -> list[str]:
        """Overrides typed on the command line, or set by the sweep."""
        return self._read(".hydra/overrides.yaml", lambda file: list(read_yaml(file) or []), [])

    @cached_property
    def choices(self) -> dict[str, str]:
        """Option chosen in each config group, such as `solver: lgd_rpp`."""
        empty: dict[str, Any] = {}
        hydra = self._read(".hydra/hydra.yaml", read_yaml_object, empty)
        chosen = _dig(hydra, "hydra", "runtime", "choices")
        return {str(k): str(v) for k, v in chosen.items()} if isinstance(chosen, dict) else {}

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """`metrics.csv`: a row per logged step, NaN where a metric was not logged."""
        return self._read("metrics.csv", read_metrics, pd.DataFrame())

    @cached_property
    def layers(self) -> pd.DataFrame:
        """`crossbars.csv`: a row per layer; where it is not written yet, from the saved plan."""
        table = pd.DataFrame(columns=LAYER_COLUMNS)
        for name in ("crossbars.csv", "mapping.json", "mapping_dense.json"):
            table = self._read(name, read_layers if name.endswith("csv") else layers_of_plan, table)
            if not table.empty:
                break
        return table

    @cached_property
    def costs(self) -> pd.DataFrame:
        """`cost.csv`: a row per version (dense, pruned), layer, quantity and event."""
        return self._read("cost.csv", read_costs, pd.DataFrame(columns=COST_COLUMNS))

    @cached_property
    def masks(self) -> dict[str, np.ndarray]:
        """Surviving groups per layer: name -> bool (units, input groups)."""
        empty: dict[str, np.ndarray] = {}
        stored = self._read("pruned/masks.safetensors", lambda file: load_file(file), empty)
        return {name: mask.astype(bool) for name, mask in stored.items() if mask.ndim == 2}

    def fact(self, key: str, default: Any = None) -> Any:
        """One setting of the run, wherever it is recorded.

        Looked for in `summary.json`, then among the config-group choices, then in the config
        (a value, or the `name` of a group), so that it is known for a failed run as well.
        """
        if self.summary.get(key) is not None:
            return self.summary[key]
        if key in self.choices:
            return self.choices[key]
        value = self.config.get(key)
        if isinstance(value, dict):
            value = value.get("name")
        return default if value is None else value

    @property
    def title(self) -> str:
        """`vgg16 on digits`, as far as it is known."""
        model, data = self.fact("model"), self.fact("data")
        if model is None:
            return self.path.name
        return f"{model} on {data}" if data is not None else str(model)


def is_run_folder(path: Path) -> bool:
    """Whether `path` carries a sign of a run, and is not a sweep."""
    if (path / _SIGN_OF_A_SWEEP).is_file():
        return False
    return any((path / sign).is_file() for sign in _SIGNS)


def find_runs(folder: Path) -> list[RunFolder]:
    """All runs at or below a folder, in the natural order of their paths (2 before 10).

    Args:
        folder: A run folder, a sweep, or any folder above them. Run folders are not searched
            for further runs.

    Raises:
        RunFolderError: If the folder does not exist or no run is in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder; give the folder of a run or of a sweep.")
    runs = [RunFolder(path) for path in _walk(folder)]
    if not runs:
        raise RunFolderError(
            f"No run was found in {folder}; give a folder such as logs/train/multiruns/<stamp> "
            "or logs/train/runs/<stamp>."
        )
    return runs


def _walk(folder: Path) -> Iterator[Path]:
    if is_run_folder(folder):
        yield folder
        return
    children = (child for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
    for child in sorted(children, key=lambda c: (not c.name.isdigit(), c.name.zfill(8))):
        yield from _walk(child)


def _dig(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
