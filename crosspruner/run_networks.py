"""The networks of finished runs, to be judged next to each other on the same images."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from crosspruner.assemble import network_of, open_data
from crosspruner.errors import RunFolderError
from crosspruner.hardware import Plan
from crosspruner.reporting.run_folder import RunFolder
from crosspruner.training import load_weights
from crosspruner.training.data.base import ImageData

LOADING = frozenset({"seed", "batch_size", "num_workers"})
"""Data settings that leave the test and the calibration images as they are."""


@dataclass(frozen=True)
class Subject:
    """A network to be judged."""

    name: str
    plan: Plan
    network: nn.Module


def read_runs(folders: Sequence[Path], dense: bool) -> tuple[ImageData, list[Subject]]:
    """The test images of the first run, and the networks of all of them.

    Args:
        folders: finished runs.
        dense: whether to judge the dense networks as well; one that several runs share comes once.

    Returns:
        The data, and the networks. Where not all runs share a network, its name ends with the
        shortest end of its run's path that no other run has.

    Raises:
        RunFolderError: a run is not finished, or on other data than the first.
    """
    configs = {}
    for folder in folders:
        config = OmegaConf.create(RunFolder(folder).config)
        config.model.pretrained = False  # every weight is loaded
        configs[folder.resolve()] = config
    _check_same_data(configs)
    data = open_data(next(iter(configs.values())))
    subjects: dict[Hashable, Subject] = {}
    users: dict[Hashable, list[str]] = {}
    for (folder, config), label in zip(configs.items(), _shortest_ends(configs), strict=True):
        for name, weights, plan_file in _versions_of(folder, float(config.ratio), dense):
            plan = Plan.load(folder / plan_file)
            key: Hashable = folder
            if name == "dense":
                content = hashlib.sha256((folder / weights).read_bytes()).digest()
                key = (content, plan.crossbar, tuple(layer.tiling for layer in plan.layers))
            users.setdefault(key, []).append(label)
            if key not in subjects:
                network = network_of(config, data)
                load_weights(network, folder / weights)
                subjects[key] = Subject(name, plan, network)
    for key, runs in users.items():
        if len(runs) < len(configs):  # what all runs share, or the only run has, needs no label
            subjects[key] = replace(subjects[key], name=f"{subjects[key].name} {runs[0]}")
    return data, list(subjects.values())


def _check_same_data(configs: Mapping[Path, Any]) -> None:
    """Refuse runs whose images are not those of the first: all are judged on these."""
    first = next(iter(configs))
    expected = _image_settings(configs[first])
    for folder, config in configs.items():
        found = _image_settings(config)
        for key in expected | found:
            if found.get(key) != expected.get(key):
                raise RunFolderError(
                    f"{folder} has data.{key}={found.get(key, 'nothing')} where {first} has "
                    f"{expected.get(key, 'nothing')}: judge runs on different data one by one."
                )


def _image_settings(config: Any) -> dict[str, Any]:
    """The data settings of a run that say which images there are, and how they look."""
    settings: Any = OmegaConf.to_container(config.data, resolve=True)
    if settings.get("dir") is not None:  # typed in one way or another, it is one folder
        settings["dir"] = str(Path(settings["dir"]).expanduser().resolve())
    return {key: value for key, value in settings.items() if key not in LOADING}


def _shortest_ends(paths: Iterable[Path]) -> list[str]:
    """The shortest end of each path that no other path has: `a/0` and `b/0`, but `1`."""
    ends = [[str(Path(*p.parts[i:])) for i in reversed(range(len(p.parts)))] for p in paths]
    count = Counter(itertools.chain(*ends))
    return [next(end for end in own if count[end] == 1) for own in ends]


def _versions_of(folder: Path, ratio: float, dense: bool) -> list[tuple[str, str, str]]:
    """The networks that a run keeps: (name, file of the weights, file of the plan)."""
    name = "dense" if ratio == 0 else f"pruned {ratio:.0%}"
    versions = [(name, "pruned/weights.safetensors", "mapping.json")]
    if ratio > 0 and dense and (folder / "checkpoints" / "dense.safetensors").is_file():
        versions.insert(0, ("dense", "checkpoints/dense.safetensors", "mapping_dense.json"))
    for _, *files in versions:
        for file in files:
            if not (folder / file).is_file():
                raise RunFolderError(f"{folder} has no {file}: give the folder of a finished run.")
    return versions
