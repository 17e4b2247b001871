"""The hooks by which Lightning drives a `Pruner`."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.pruning.pruner import Pruner


class PruningCallback(Pruner, pl.Callback):
    """A `Pruner` that follows a Lightning fit; its state is kept in every checkpoint.

    A second `fit` of the same network keeps its masks; one of another network starts anew.
    """

    root = ""
    """Dotted name of the network inside the LightningModule ("net"); "" = the module itself."""
    input_shape: tuple[int, ...] | None = None
    """(C, H, W) of one input; None = of the module's `example_input_array`."""
    _shown: tuple[int, dict[str, float]] | None = None
    pruned_at_the_end = False
    """Whether pruning came after the last step: what was validated is not the result then."""

    def find(self, root: str, input_shape: Sequence[int] | None) -> None:
        """Say where the network is inside the LightningModule, and what it reads."""
        self.root = root
        self.input_shape = None if input_shape is None else tuple(input_shape)

    def network(self, pl_module: pl.LightningModule) -> nn.Module:
        """The network inside the LightningModule."""
        return pl_module.get_submodule(self.root)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and self.dense_plan is None:
            self.prepare(self.network(pl_module), self._shape(pl_module))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bind(self.network(pl_module))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown = None
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("pruning needs an end: set trainer.max_epochs or trainer.max_steps")
        self.total_steps = int(steps)
        self.last_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.before_batch(trainer.global_step)

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.before_step(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if not self.after_batch(step):
            return
        # To log six values takes as long as the step of a small network on a GPU. Lightning shows
        # what it was told last until the epoch ends: it is told again what has changed.
        shown = trainer.current_epoch, self.metrics(step)
        if shown != self._shown:
            self._shown = shown
            pl_module.log_dict(shown[1], on_step=True, on_epoch=False, rank_zero_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reached = self.frozen or self.ratio == 0
        accuracy = trainer.callback_metrics.get("val/acc")
        if accuracy is not None:
            # What model selection may look at: nothing before the target ratio is reached.
            score = accuracy if reached else torch.zeros_like(accuracy)
            pl_module.log("val/acc_at_ratio", score, rank_zero_only=True)

    def _shape(self, pl_module: pl.LightningModule) -> tuple[int, ...]:
        if self.input_shape is not None:
            return self.input_shape
        example = pl_module.example_input_array
        if not isinstance(example, Tensor):
            raise ConfigError(
                f"the input shape is unknown: give {type(self).__name__}(input_shape=(3, 32, 32)) "
                "or set the module's example_input_array"
            )
        return tuple(example.shape[1:])
