"""When to prune how much: dense, prune and fine-tune phases on the axis of optimizer steps."""

from dataclasses import dataclass, replace
from enum import IntEnum

from crosspruner.errors import ConfigError


class Phase(IntEnum):
    """What a training step belongs to; logged as `prune/phase`."""

    DENSE = 0
    PRUNE = 1
    FINETUNE = 2


@dataclass(frozen=True)
class SchedulePoint:
    """Where a step stands: its phase, the share of the target reached, and RPP's relaxation."""

    phase: Phase
    ramp: float
    relax: float


@dataclass(frozen=True)
class PruningSchedule:
    """Lengths of the phases and the shape of the ramp.

    Args:
        dense_epochs: epochs of plain training before anything is removed, >= 0.
        prune_epochs: epochs over which the target is reached, >= 0; 0 for procedures that reach
            it between two steps.
        finetune_epochs: epochs with frozen masks, >= 0.
        warmup: share of the prune phase, in [0, 1), that only observes (curvature) first.
        hold: share of the prune phase, in [0, 1), at the end in which the target is held but masks
            may still change.
        relax: relaxation of RPP at the start of the prune phase, >= 0 (0 = plain top-r).
        relax_until: share of the prune phase, in (0, 1], after which the relaxation is 0. Masks
            that still change late cost accuracy that fine-tuning does not win back.

    Raises:
        ConfigError: a value is out of its range.

    Source: phases from Liang et al. 2018 (prune, then fine-tune); the cubic ramp from Zhu and
    Gupta, "To prune, or not to prune", 2017; the annealing of RPP is our reading.
    """

    dense_epochs: float = 0.0
    prune_epochs: float = 4.0
    finetune_epochs: float = 4.0
    warmup: float = 0.1
    hold: float = 0.1
    relax: float = 0.1
    relax_until: float = 0.3

    def __post_init__(self) -> None:
        if min(self.dense_epochs, self.prune_epochs, self.finetune_epochs) < 0:
            raise ConfigError(
                f"schedule: dense_epochs={self.dense_epochs}, prune_epochs={self.prune_epochs}, "
                f"finetune_epochs={self.finetune_epochs}: each must be 0 or more"
            )
        if not (self.warmup >= 0 and self.hold >= 0 and self.warmup + self.hold < 1):
            raise ConfigError(
                f"schedule: warmup={self.warmup} and hold={self.hold} are shares of the prune "
                "phase: 0 or more each, below 1 together"
            )
        if self.relax < 0 or not 0 < self.relax_until <= 1:
            raise ConfigError(
                f"schedule: relax={self.relax} must be 0 or more, "
                f"relax_until={self.relax_until} above 0 and at most 1"
            )

    def at_once(self) -> "PruningSchedule":
        """The same schedule for a procedure whose pruning takes no training steps."""
        return replace(self, prune_epochs=0.0)

    @property
    def epochs(self) -> float:
        """Epochs of the whole run."""
        return self.dense_epochs + self.prune_epochs + self.finetune_epochs

    def boundaries(self, total_steps: int) -> tuple[int, int]:
        """First step of the prune phase and of the fine-tune phase.

        The phases are scaled in proportion where `total_steps` is not what `epochs` would give
        (a user who caps `trainer.max_epochs`); the prune phase keeps at least one step.
        """
        if not self.epochs:
            return 0, 0
        start = round(total_steps * self.dense_epochs / self.epochs)
        stop = round(total_steps * (self.dense_epochs + self.prune_epochs) / self.epochs)
        start = min(start, max(total_steps - 1, 0))
        return start, max(stop, start + 1) if self.prune_epochs else start

    def at(self, step: int, total_steps: int) -> SchedulePoint:
        """The point of the schedule that holds once `step` optimizer steps have been taken."""
        start, stop = self.boundaries(total_steps)
        if step < start:
            return SchedulePoint(Phase.DENSE, 0.0, 0.0)
        if step >= stop:
            return SchedulePoint(Phase.FINETUNE, 1.0, 0.0)
        progress = (step - start) / (stop - start)
        share = (progress - self.warmup) / (1 - self.warmup - self.hold)
        share = min(max(share, 0.0), 1.0)
        relax = self.relax * max(0.0, 1 - progress / self.relax_until)
        return SchedulePoint(Phase.PRUNE, 1 - (1 - share) ** 3, relax)
