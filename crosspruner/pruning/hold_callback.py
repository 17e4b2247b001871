"""HeldMasks: the Lightning callback that fine-tunes what `prune` returned."""

from crosspruner.pruning.fixed_masks import FixedMasks
from crosspruner.pruning.oneshot import PruneResult
from crosspruner.pruning.pruning_callback import PruningCallback


class HeldMasks(FixedMasks, PruningCallback):
    """Keeps what was pruned at zero while Lightning fine-tunes.

    Args:
        result: what `crosspruner.prune` returned.
        root: dotted name of the network that was pruned inside the LightningModule ("net"); "" =
            the module itself.

    Raises:
        PlanError: (when fitting starts) the network is not the one that was pruned.
    """

    def __init__(self, result: PruneResult, root: str = "") -> None:
        super().__init__(result)
        self.find(root, result.dense_plan.input_shape)
