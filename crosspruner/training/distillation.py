"""Distillation: what the dense network says of an image is part of the target."""

import copy
from typing import Any

import pytorch_lightning as pl
from safetensors.torch import load_file

from crosspruner.errors import CheckpointError
from crosspruner.pruning.schedule import Phase
from crosspruner.pruning.snapshot import Snapshot
from crosspruner.training.module import Classifier


class Distillation(pl.Callback):
    """Gives a `Classifier` the dense network of its own run as teacher, once pruning begins.

    The teacher is what `snapshot` wrote before the first step of the prune phase. From then to the
    end of the fit it costs a forward pass a step and the memory of one more network (no gradients,
    no optimizer state); checkpoints hold nothing of it. A resumed run reads it from the snapshot
    that lies beside its checkpoint.

    Args:
        snapshot: of the dense network; it must come before this callback.

    Raises:
        CheckpointError: (in a resumed run) the snapshot is no longer there.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        phase = self.snapshot.pruning.phase_at(trainer.global_step)
        if pl_module.teacher is not None or phase < Phase.PRUNE:
            return
        trainer.strategy.barrier()  # the first process writes the file
        path = self.snapshot.path
        if not path.is_file():
            raise CheckpointError(
                f"distill learns from the dense network, but {path.name} is not beside the "
                f"checkpoint {trainer.ckpt_path}: put it there, or resume with distill=0"
            )
        teacher = copy.deepcopy(pl_module.net).eval().requires_grad_(False)
        teacher.load_state_dict(load_file(path))
        pl_module.learn_from(teacher)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.learn_from(None)
