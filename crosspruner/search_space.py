"""What a search may choose: a ratio for each layer, and any key of the configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, open_dict
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from safetensors.torch import load_file

from crosspruner.assemble import network_of, open_data
from crosspruner.config import run_settings
from crosspruner.errors import ConfigError
from crosspruner.hardware import plan_model
from crosspruner.pruning.budget import prunable_layers, uniform_budget
from crosspruner.pruning.layer_ratios import KEY
from crosspruner.sparsity import GroupLayout

MASKS = "pruned/masks.safetensors"
"""What a run removed, in its folder."""


@dataclass
class Space:
    """The choices of a search.

    A layer's choice is the number of its blocks to remove: each value is another plan, and none
    is refused.
    """

    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    """Key, as it is typed in an override -> what it may be."""
    blocks: dict[str, int] = field(default_factory=dict)
    """Key of a layer's ratio -> blocks of that layer."""
    start: list[dict[str, Any]] = field(default_factory=list)
    """Choices to begin with."""

    def overrides(self, chosen: Mapping[str, Any]) -> list[str]:
        """One choice of everything as what is typed on the command line."""
        values = {
            key: f"{value / self.blocks[key]:.6g}" if key in self.blocks else value
            for key, value in chosen.items()
        }
        return [f"{key}={value}" for key, value in values.items()]

    def add(self, override: Override) -> None:
        """Search over one key: `interval(low, high)`, `choice(a,b)`, `a,b` or `range(...)`.

        Numbers of an interval are integers if both ends are; `tag(log, interval(...))` draws them
        by their logarithm.
        """
        value = override.value()
        distribution: BaseDistribution
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                distribution = IntDistribution(value.start, value.end, log=log)
            else:
                distribution = FloatDistribution(float(value.start), float(value.end), log=log)
        else:
            distribution = CategoricalDistribution(list(override.sweep_string_iterator()))
        self.distributions[override.get_key_element()] = distribution


def add_layers(
    space: Space, config: DictConfig, limits: Sequence[float], start_ratios: Sequence[float]
) -> dict[str, GroupLayout]:
    """Search over the ratio of each prunable layer.

    Args:
        space: is added to.
        config: a composed job, whose network, chip and grain say which layers there are.
        limits: least and largest ratio of a layer, in [0, 1); none goes further than it can.
        start_ratios: ratios of the model to begin with, the same share of every layer.

    Returns:
        The groups of each prunable layer.

    Raises:
        ConfigError: the limits are no range in [0, 1).
        BudgetError: a ratio to begin with cannot be met.
    """
    low, high = (Fraction(str(limit)) for limit in limits)
    if not 0 <= low < high < 1:
        raise ConfigError(
            f"hydra.sweeper.layers=[{float(low):g},{float(high):g}] is no range of ratios: give "
            "two numbers from 0 to below 1, such as [0.0,0.9]"
        )
    with open_dict(config):
        config.budget = {"name": "uniform"}
    settings = run_settings(config)
    data = open_data(config)
    plan = plan_model(
        network_of(config, data),
        (data.in_channels, *data.image_size),
        settings.crossbar,
        settings.mapping,
        settings.grain.name,
        settings.include,
        settings.exclude,
    )
    layouts = prunable_layers(plan, settings.grain.name)
    keys = {name: f"+{KEY}.{name}" for name in layouts}
    for name, layout in layouts.items():
        most = min(layout.blocks - layout.fewest_blocks, int(high * layout.blocks))
        least = min(most, -int(-low * layout.blocks // 1))
        space.distributions[keys[name]] = IntDistribution(least, most)
        space.blocks[keys[name]] = layout.blocks
    for ratio in start_ratios:
        budget = uniform_budget(plan, layouts, ratio)
        removed = {name: layout.blocks - budget[name] for name, layout in layouts.items()}
        space.start.append({keys[name]: blocks for name, blocks in removed.items()})
    return layouts


def add_runs(space: Space, layouts: Mapping[str, GroupLayout], folders: Sequence[str]) -> None:
    """Begin with what finished runs removed from each layer, whichever budget told them to.

    Args:
        space: is added to, after `add_layers`; what its limits forbid is brought within them.
        layouts: the groups of each prunable layer.
        folders: of runs, or of sweeps, whose finished runs are taken in the order of their names.

    Raises:
        ConfigError: a folder has no finished run, or one of another network, chip or grain.
    """
    for folder in map(Path, folders):
        found = sorted(folder.glob(MASKS)) or sorted(folder.glob(f"*/{MASKS}"), key=_natural)
        if not found:
            raise ConfigError(
                f"hydra.sweeper.start_runs: {folder} is neither the folder of a finished run nor "
                "of a sweep: give logs/train/runs/STAMP or logs/train/multiruns/STAMP"
            )
        for path in found:
            masks = load_file(path)
            shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
            if shapes != {name: layout.shape for name, layout in layouts.items()}:
                raise ConfigError(
                    f"hydra.sweeper.start_runs: {path.parents[1]} pruned other groups than these "
                    "jobs would; start from runs with the same model, crossbar, mapping and grain"
                )
            choice = {}
            for name, layout in layouts.items():
                key = f"+{KEY}.{name}"
                allowed = space.distributions[key]
                assert isinstance(allowed, IntDistribution)
                removed = layout.blocks - layout.blocks_of(masks[name].bool())
                choice[key] = min(max(removed, allowed.low), allowed.high)
            space.start.append(choice)


def _natural(path: Path) -> tuple[int, str]:
    """Run 10 of a sweep comes after run 9."""
    name = path.parents[1].name
    return (int(name), "") if name.isdecimal() else (-1, name)
