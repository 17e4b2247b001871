"""How the layer-wise procedure prunes each layer."""

from dataclasses import dataclass

from crosspruner.errors import ConfigError
from crosspruner.pruning.moment_sums import MAX_BYTES


@dataclass(frozen=True)
class LayerwiseSettings:
    """How each layer is pruned.

    Args:
        solver: a name in `solver.SOLVERS`.
        reorder: one of `layer_order.REORDERS`.
        refit: whether surviving weights are refitted.
        damping: of the refit, a share of the mean input energy, > 0.
        positions: output positions per image that enter the moments, >= 1; None = all.
        max_bytes: largest second moment kept whole.

    Raises:
        ConfigError: `damping` or `positions` is out of its range.
    """

    solver: str = "lgd_rpp"
    reorder: str = "none"
    refit: bool = True
    damping: float = 0.01
    positions: int | None = 128
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ConfigError(
                f"procedure.damping={self.damping:g}: give a share of the mean input energy above "
                "0, for example 0.01; procedure.refit=false refits nothing"
            )
        if self.positions is not None and self.positions < 1:
            raise ConfigError(
                f"procedure.positions={self.positions}: give output positions per image, 1 or "
                "more, or null for all"
            )

    @property
    def foresees_refit(self) -> bool:
        """Whether masks are chosen for refitted weights."""
        return self.refit or self.solver == "obs_group"
