"""`hydra/sweeper=search`, where Hydra looks for plugins: in `hydra_plugins`, and nowhere else.

Hydra imports this module whenever it starts; all that takes time is imported when a search begins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ParetoSearch(Sweeper):
    """Searches for the runs that no other beats in all objectives; see `crosspruner.search`.

    Args:
        trials: jobs in all.
        at_once: jobs handed to the launcher at a time; how many it runs at the same time.
        seed: of the proposals.
        startup: trials before proposals follow the results so far.
        objectives: field of `summary.json` -> `maximize` or `minimize`.
        layers: range [low, high] of the ratio of each prunable layer; None = not searched.
        start_ratios: uniform ratios of the model to begin with (with `layers`).
        start_runs: folders of finished runs, or of sweeps of them, to begin with what their layers
            lost (with `layers`).
        params: further keys, in Hydra's sweep syntax: `interval(0.01, 0.1)`, `choice(a, b)`.
    """

    def __init__(
        self,
        trials: int,
        at_once: int,
        seed: int,
        startup: int,
        objectives: Mapping[str, str],
        layers: Sequence[float] | None,
        start_ratios: Sequence[float],
        start_runs: Sequence[str],
        params: Mapping[str, Any] | None,
    ) -> None:
        self.trials = trials
        self.at_once = at_once
        self.seed = seed
        self.startup = startup
        self.objectives = dict(objectives)
        self.layers = layers
        self.start_ratios = start_ratios
        self.start_runs = start_runs
        self.params = dict(params or {})
        self.config: DictConfig | None = None
        self.context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from crosspruner.search import search

        assert self.config is not None
        assert self.context is not None
        assert self.launcher is not None
        return search(self, self.config, self.context.config_loader, self.launcher, arguments)
