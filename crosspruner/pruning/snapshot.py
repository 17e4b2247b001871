"""Keeps the dense network as it stands when pruning begins, to be judged beside the pruned one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.pruning.schedule import Phase


class Snapshot(pl.Callback):
    """Writes the network's weights to a file before the first step of a phase.

    Where the phase has no step, when fitting ends.

    Args:
        path: the safetensors file to write. A resumed run that is past that step keeps the file
            that lies beside the checkpoint it resumes from.
        pruning: the callback whose schedule says when.
        phase: PRUNE for the dense network, FINETUNE for the pruned one before it is fine-tuned.
        weights: network -> its state dict, or the averaged one; None = the former.
    """

    def __init__(
        self,
        path: str | Path,
        pruning: PruningCallback,
        phase: Phase,
        weights: Callable[[nn.Module], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.path = Path(path)
        self.pruning = pruning
        self.phase = phase
        self.weights = weights or nn.Module.state_dict
        self.taken = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(phase=int(self.phase))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not when training starts: a finished run that is resumed has no training to start.
        if self.taken and not self.path.exists() and trainer.ckpt_path is not None:
            earlier = Path(trainer.ckpt_path).parent / self.path.name
            if earlier.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                save_file(load_file(earlier), self.path)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.taken or self.pruning.phase_at(trainer.global_step) < self.phase:
            return
        self.take(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.pruning.ratio > 0 and not self.taken:  # the phase has no step of its own
            self.take(trainer, pl_module)

    def take(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the weights as they are now."""
        self.taken = True
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            state = self.weights(self.pruning.network(pl_module))
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.taken = state_dict["taken"]
