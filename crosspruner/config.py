"""The composed configuration, checked before anything is built.

Hydra composes YAML; this module gives its keys types, ranges and choices. Each group's schema is
the very dataclass that the library takes, so a key, a field and an argument are one word.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, MappingSpec
from crosspruner.pruning.budget import BUDGETS
from crosspruner.pruning.schedule import PruningSchedule
from crosspruner.pruning.step_solver import StepSettings
from crosspruner.sparsity.groups import GRAINS

PROCEDURES = ("per_step",)


@dataclass(frozen=True)
class Named:
    """A group of which only the choice matters."""

    name: str = ""


@dataclass(frozen=True)
class BudgetSettings:
    """How the crossbars to remove are shared out over the layers."""

    name: str = "uniform"
    layer_ratios: Any = None
    """Layer or pattern -> fraction of its crossbars to remove (`per_layer` alone)."""

    def __post_init__(self) -> None:
        given = isinstance(self.layer_ratios, dict) and len(self.layer_ratios) > 0
        if (self.name == "per_layer") != given:
            raise ConfigError(
                f"budget={self.name} with budget.layer_ratios={self.layer_ratios}: per_layer needs "
                "ratios, and no other budget takes them; type budget=per_layer "
                "'budget.layer_ratios={features.*:0.6}'"
            )


@dataclass(frozen=True)
class RunSettings:
    """The part of a configuration that is crosspruner's own; the rest belongs to libraries."""

    ratio: float = 0.5
    seed: int = 0
    task_name: str = "train"
    ckpt_path: str | None = None
    tags: list[str] = field(default_factory=list)
    include: list[str] | None = None
    exclude: list[str] | None = None
    crossbar: Crossbar = field(default_factory=lambda: Crossbar(256, 256))
    mapping: MappingSpec = field(default_factory=MappingSpec)
    grain: Named = field(default_factory=lambda: Named("column"))
    solver: StepSettings = field(default_factory=StepSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    procedure: Named = field(default_factory=lambda: Named("per_step"))
    schedule: PruningSchedule = field(default_factory=PruningSchedule)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ConfigError(
                f"ratio={self.ratio:g} is out of range: give the fraction of compute crossbars to "
                "remove, from 0 (plain training) to below 1"
            )
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} is out of range: give 0 or more")
        for key, given, choices in (
            ("grain", self.grain.name, GRAINS),
            ("budget", self.budget.name, (*BUDGETS, "per_layer")),
            ("procedure", self.procedure.name, PROCEDURES),
        ):
            if given not in choices:
                raise ConfigError(f"{key}={given!r} is unknown: use one of {', '.join(choices)}")


def run_settings(config: DictConfig) -> RunSettings:
    """Check a composed configuration and turn our part of it into dataclasses.

    Args:
        config: what hydra composed.

    Returns:
        The checked settings.

    Raises:
        ConfigError: a value has the wrong type or lies out of range, or a key is unknown; the
            message names the key.
    """
    given = {key: config[key] for key in RunSettings.__dataclass_fields__ if key in config}
    schema = OmegaConf.structured(RunSettings)
    for group in schema.values():
        if OmegaConf.is_config(group):  # frozen dataclasses come read-only, merging included
            OmegaConf.set_readonly(group, False)
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{error.full_key}: {reason}") from error
    assert isinstance(settings, RunSettings)
    return settings
