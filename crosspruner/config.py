"""The composed configuration, checked before anything is built.

Hydra composes YAML; this module gives its keys types, ranges and choices. Each group's schema is
the very dataclass that the library takes, so a key, a field and an argument are one word.
"""

from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, MappingSpec, UnitCosts
from crosspruner.hardware.packing import GRAINS
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.layer_order import REORDERS
from crosspruner.pruning.schedule import PruningSchedule
from crosspruner.pruning.step_settings import StepSettings
from crosspruner.training.on_device import DeviceSettings
from crosspruner.training.settings import TrainingSettings

PROCEDURES = ("per_step", "layerwise", "mask_sparsity", "group_lasso", "both", "held")


LISTS = ("include", "exclude", "tags")


@dataclass(frozen=True)
class Named:
    """A group of which only the choice matters."""

    name: str = ""


@dataclass(frozen=True)
class ProcedureSettings:
    """How masks come about.

    Args:
        name: one of PROCEDURES.
        calibration_images: images that the moments are taken from (layerwise).
        refit: whether surviving weights are refitted (layerwise).
        damping: of the refit, a share of the mean input energy, above 0 (layerwise).
        positions: output positions drawn per image; None = all (layerwise).
        strength: of the penalty on groups, above 0 (mask_sparsity, group_lasso, which read the
            keys of layerwise as well).
        first: share of the removals that comes at once, between 0 and 1 (both, which reads the keys
            of layerwise as well).
        run: folder of the run whose pruned network is trained further (held).
    """

    name: str = "per_step"
    calibration_images: int = 512
    refit: bool = True
    damping: float = 0.01
    positions: int | None = 128
    strength: float = 3.0
    first: float = 0.7
    run: str = ""


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
    procedure: ProcedureSettings = field(default_factory=ProcedureSettings)
    reorder: str = "none"
    schedule: PruningSchedule = field(default_factory=PruningSchedule)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    cost: UnitCosts = field(default_factory=UnitCosts)
    distill: float = 0.0
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ConfigError(
                f"ratio={self.ratio:g} is out of range: give the fraction of compute crossbars to "
                "remove, from 0 (plain training) to below 1"
            )
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} is out of range: give 0 or more")
        if not 0 <= self.distill <= 1:
            raise ConfigError(
                f"distill={self.distill:g} is out of range: give the share of the loss that comes "
                "from the dense network, from 0 (none) to 1 (all)"
            )
        for key, given, choices in (
            ("grain", self.grain.name, GRAINS),
            ("procedure", self.procedure.name, PROCEDURES),
            ("reorder", self.reorder, REORDERS),
        ):
            if given not in choices:
                raise ConfigError(f"{key}={given!r} is unknown: use one of {', '.join(choices)}")
        if self.procedure.name == "held" and not self.procedure.run:
            raise ConfigError(
                "procedure=held trains a finished run further: type procedure.run=FOLDER of that "
                "run, logs/train/runs/STAMP"
            )
        if self.reorder != "none" and self.procedure.name == "per_step":
            raise ConfigError(
                f"reorder={self.reorder} needs the layers at rest: type procedure=layerwise, or "
                "reorder=none"
            )


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
    for key in LISTS:
        if given.get(key) is not None and not OmegaConf.is_list(given[key]):
            raise ConfigError(f"{key}={given[key]} is no list: type {key}=[{given[key]}]")
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
