"""A search for the runs that no other beats, such as in accuracy and in crossbars.

Each trial is a job of the sweep like any other: its folder has the trial's number, it runs under
any launcher, it is skipped or resumed when the same command is typed again. What was tried, and
what came out, is kept in the sweep's folder in a file of Optuna; a search that was stopped goes on
from it as if it had never stopped.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from crosspruner.errors import ConfigError
from crosspruner.reporting.templating import write_whole

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState

    from crosspruner.search_space import Space, add_layers, add_runs
except ImportError as error:
    raise ConfigError("a search needs Optuna: pip install 'crosspruner[search]'") from error

if TYPE_CHECKING:
    from hydra_plugins.crosspruner_search import ParetoSearch

log = logging.getLogger(__name__)

TRIALS = "trials.journal"
"""Optuna's file in the folder of the sweep; its study is named `search`."""

FRONT = "front.csv"
"""In the folder of the sweep: the trials that no other beats in all objectives."""

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "maximize": "maximize",
    "minimize": "minimize",
}


def search(
    settings: "ParetoSearch",
    config: DictConfig,
    config_loader: ConfigLoader,
    launcher: Launcher,
    arguments: Sequence[str],
) -> list[tuple[int, list[float]]]:
    """Run trials until there are as many as asked for.

    A trial whose job fails is left open: the same command typed again runs it once more.

    Args:
        settings: what to search for, and how long.
        config: what hydra composed for the sweep.
        config_loader: composes the jobs.
        launcher: runs them.
        arguments: what was typed: fixed values, and further keys to search over.

    Returns:
        Number and objectives of the trials that no other beats.

    Raises:
        ConfigError: there is nothing to search over, or a setting is unknown.
    """
    for name, direction in settings.objectives.items():
        if direction not in DIRECTIONS:
            raise ConfigError(
                f"hydra.sweeper.objectives.{name}={direction}: use {' or '.join(DIRECTIONS)}"
            )
    typed = [f"{key}={value}" for key, value in settings.params.items()] + list(arguments)
    overrides = OverridesParser.create(config_loader=config_loader).parse_overrides(typed)
    fixed = [str(one.input_line) for one in overrides if not one.is_sweep_override()]
    space = Space()
    if settings.layers is not None:
        job = config_loader.load_sweep_config(config, fixed)
        layouts = add_layers(space, job, settings.layers, settings.start_ratios)
        add_runs(space, layouts, settings.start_runs)
    for override in overrides:
        if override.is_sweep_override():
            space.add(override)
    if not space.distributions:
        raise ConfigError(
            "there is nothing to search over: set hydra.sweeper.layers=[0.0,0.9], or give a range, "
            "such as 'optimizer.lr=interval(0.01,0.1)'"
        )
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    study = open_study(folder / TRIALS, settings.objectives, space)
    failed: set[int] = set()
    while batch := _next_trials(study, space, settings, failed):
        for numbers in _runs_of(batch):
            jobs = [[*fixed, *space.overrides(batch[number])] for number in numbers]
            for number, result in zip(numbers, launcher.launch(jobs, numbers[0]), strict=True):
                values = _objectives(result, settings.objectives)
                if values is None:
                    failed.add(number)
                else:
                    study.tell(number, values)
        _write_front(study, folder / FRONT, settings.objectives, space)
    front = [(trial.number, trial.values) for trial in study.best_trials]
    log.info("%d of %d trials are beaten by none: %s", len(front), settings.trials, folder / FRONT)
    return front


def open_study(path: Path, objectives: Mapping[str, str], space: Space) -> "optuna.Study":
    """The study in a file: a new one, or the one that is there.

    Args:
        path: the file, in Optuna's journal format.
        objectives: field of `summary.json` -> direction.
        space: says where a new study begins.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))),
        study_name="search",
        directions=[DIRECTIONS[direction] for direction in objectives.values()],
        load_if_exists=True,
    )
    if not study.get_trials(deepcopy=False):
        for start in space.start:
            study.enqueue_trial(start)
    return study


def _next_trials(
    study: "optuna.Study", space: Space, settings: "ParetoSearch", failed: set[int]
) -> dict[int, dict[str, Any]]:
    """Number and choices of the next trials: those that were stopped, else new ones."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    left = settings.trials - states.count(TrialState.COMPLETE) - len(failed)
    stopped = [t for t in trials if t.state is TrialState.RUNNING and t.number not in failed]
    for trial in stopped:
        if trial.params.keys() != space.distributions.keys():  # stopped while it was made
            study.tell(trial.number, state=TrialState.FAIL)
    whole = {t.number: t.params for t in stopped if t.params.keys() == space.distributions.keys()}
    if whole:
        return dict(list(whole.items())[: settings.at_once])
    asked = (_ask(study, space, settings) for _ in range(min(left, settings.at_once)))
    return {trial.number: trial.params for trial in asked}


def _ask(study: "optuna.Study", space: Space, settings: "ParetoSearch") -> "optuna.Trial":
    """A new trial.

    Its proposal depends on the seed, its number and the results so far alone, so that a search that
    was stopped goes on as one that was not.
    """
    number = sum(t.state is not TrialState.WAITING for t in study.get_trials(deepcopy=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=settings.seed * 10_007 + number,
            n_startup_trials=settings.startup,
            multivariate=True,
            constant_liar=True,  # trials at the same time keep apart
        )
        return study.ask(space.distributions)


def _runs_of(numbers: Mapping[int, Any]) -> Iterator[list[int]]:
    """Consecutive numbers together: a launcher counts its jobs upwards."""
    ordered = sorted(numbers)
    cuts = [i for i, (a, b) in enumerate(pairwise(ordered), start=1) if b != a + 1]
    for start, stop in pairwise([0, *cuts, len(ordered)]):
        yield ordered[start:stop]


def _objectives(result: JobReturn, objectives: Mapping[str, str]) -> list[float] | None:
    """What a job came to; None where it failed.

    Raises:
        ConfigError: an objective is no number of its summary.
    """
    assert result.hydra_cfg is not None
    folder = Path(result.hydra_cfg.hydra.runtime.output_dir)
    if not (folder / "DONE").exists():
        return None
    summary = json.loads((folder / "summary.json").read_text())
    for name in objectives:
        if isinstance(summary.get(name), bool) or not isinstance(summary.get(name), int | float):
            numbers = [key for key, value in summary.items() if isinstance(value, int | float)]
            raise ConfigError(
                f"hydra.sweeper.objectives.{name} is no number of {folder / 'summary.json'}; "
                f"choose of {', '.join(numbers)}"
            )
    return [float(summary[name]) for name in objectives]


def _write_front(
    study: "optuna.Study", path: Path, objectives: Mapping[str, str], space: Space
) -> None:
    """The trials that no other beats, as a table: run, objectives, what was chosen."""
    rows: list[dict[str, Any]] = []
    best: list[FrozenTrial] = sorted(study.best_trials, key=lambda trial: trial.values)
    for trial in best:
        chosen = dict(text.lstrip("+").split("=", 1) for text in space.overrides(trial.params))
        rows.append(
            {"run": trial.number, **dict(zip(objectives, trial.values, strict=True)), **chosen}
        )
    write_whole(path, pd.DataFrame(rows).to_csv(index=False))
