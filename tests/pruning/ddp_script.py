"""Fits a tiny network in one or two processes; each leaves its masks. Run by the test beside it."""

# ruff: noqa: I001
import os
import sys

import crosspruner  # noqa: F401  (before others: mends torchvision where it does not fit torch)
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from crosspruner.pruning.callback import CrossbarPruning
from crosspruner.pruning.schedule import PruningSchedule
from crosspruner.pruning.step_settings import StepSettings

GLOBAL_BATCH = 16


class Tiny(pl.LightningModule):
    """No batch norm, whose statistics are those of each process: gradients alone are shared."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )

    def forward(self, images):
        return self.body(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def train_dataloader(self):
        """Batch for batch, the processes together see what one sees."""
        images = torch.randn(96, 2, 4, 4, generator=torch.Generator().manual_seed(1))
        labels = images.mean(dim=(1, 2, 3)).gt(0).long()
        processes, rank = self.trainer.world_size, self.trainer.global_rank
        ours = TensorDataset(images[rank::processes], labels[rank::processes])
        return DataLoader(ours, batch_size=GLOBAL_BATCH // processes)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(folder, processes, solver, objective, relax):
    pl.seed_everything(0, verbose=False)
    module = Tiny()
    pruning = CrossbarPruning(
        crossbar="18x8",
        mapping="folded",
        grain="crossbar",
        ratio=0.5,
        schedule=PruningSchedule(1, 2, 1, warmup=0.2, hold=0.1, relax=relax),
        settings=StepSettings(
            name=solver, objective=objective, moment_every=1, refresh_every=2, moment_rows=64
        ),
        input_shape=(2, 4, 4),
    )
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pruning],
    )
    trainer.fit(module)
    if processes > 1:
        assert torch.distributed.get_backend() == "gloo"
    left = {
        "masks": pruning.masks,
        "weights": module.state_dict(),
        "crossbars": {layer.name: layer.compute_crossbars for layer in pruning.plan.layers},
        "rank": trainer.global_rank,
        "processes": trainer.world_size,
    }
    torch.save(left, os.path.join(folder, f"{trainer.global_rank}.pt"))


if __name__ == "__main__":
    folder, processes, solver, objective, relax = sys.argv[1:]
    main(folder, int(processes), solver, objective, float(relax))
