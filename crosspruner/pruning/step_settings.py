"""How the state of a layer moves while training: the solver, its objective, and their numbers."""

from dataclasses import dataclass

from crosspruner.errors import ConfigError
from crosspruner.pruning.network_solver import WHOLE_NETWORK
from crosspruner.solver import SOLVERS

STEP_SOLVERS = ("lgd_rpp", "magnitude", "taylor", "random")
"""Those that work while training; the others need a layer's moments at rest."""
ALL_SOLVERS = (
    *STEP_SOLVERS,
    *(name for name in SOLVERS if name not in STEP_SOLVERS),
    *WHOLE_NETWORK,
)
OBJECTIVES = ("reconstruction", "loss")
OUTPUT_WEIGHTS = ("fisher", "energy")


@dataclass(frozen=True)
class StepSettings:
    """How the state of a layer moves.

    Args:
        name: of the solver, one of ALL_SOLVERS (those not in STEP_SOLVERS layer by layer only).
        objective: one of OBJECTIVES; lgd_rpp only.
        step_size: LGD step eta in (0, 1]: the share of the way to the target that d moves a step.
        smoothing: share of the old value that the smoothed task gradient keeps, in [0, 1).
        moment_every: training steps between two updates of the running moments, >= 1.
        refresh_every: training steps between two inversions of the running moments, >= 1.
        moment_rows: input patches drawn for an update, >= 1; more before anything is removed, where
            the schedule leaves few steps for that.
        damping: share of the mean diagonal added to a moment before it is inverted, > 0.
        output_weights: what an error at an output FM weighs. fisher: the mean squared task gradient
            there; energy: one over the output's own energy, so that all outputs count alike.

    Raises:
        ConfigError: a value is out of its range.
    """

    name: str = "lgd_rpp"
    objective: str = "reconstruction"
    step_size: float = 0.05
    smoothing: float = 0.9
    moment_every: int = 8
    refresh_every: int = 100
    moment_rows: int = 1024
    damping: float = 0.1
    output_weights: str = "fisher"

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("solver", self.name, ALL_SOLVERS),
            ("objective", self.objective, OBJECTIVES),
            ("output_weights", self.output_weights, OUTPUT_WEIGHTS),
        ):
            if value not in choices:
                raise ConfigError(f"{key}={value!r} is unknown: use one of {', '.join(choices)}")
        if not 0 < self.step_size <= 1 or not 0 <= self.smoothing < 1 or self.damping <= 0:
            raise ConfigError(
                f"solver: step_size={self.step_size} must lie in (0, 1], smoothing="
                f"{self.smoothing} in [0, 1), damping={self.damping} above 0"
            )
        if min(self.moment_every, self.refresh_every, self.moment_rows) < 1:
            raise ConfigError(
                f"solver: moment_every={self.moment_every}, refresh_every={self.refresh_every}, "
                f"moment_rows={self.moment_rows}: each must be 1 or more"
            )

    @property
    def needs_moments(self) -> bool:
        """Whether layers' inputs must be watched."""
        return self.name == "lgd_rpp" and self.objective == "reconstruction"
