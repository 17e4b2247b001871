"""Prunes a tiny network at once, on a plain training loader, in two processes under torchrun.

Each leaves its masks and weights. Run by test_several_processes.py.
"""

# ruff: noqa: I001
import faulthandler
import os
import sys

import crosspruner  # noqa: F401  (before others: mends torchvision where it does not fit torch)
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from crosspruner.pruning.both_callback import BothPruning
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.layerwise_callback import LayerwisePruning
from crosspruner.pruning.schedule import PruningSchedule
from crosspruner.pruning.step_settings import StepSettings


class Tiny(pl.LightningModule):
    """With batch norms: each process has running statistics of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def callback(kind):
    """The pruning, at once after an epoch."""
    given = {"crossbar": "18x8", "mapping": "folded", "ratio": 0.4, "input_shape": (2, 4, 4)}
    given |= {"calibration_images": 16, "root": "body"}
    if kind == "both":
        schedule = PruningSchedule(1, 1, 0, warmup=0.2, hold=0.1)
        settings = StepSettings("magnitude")
        return BothPruning(schedule=schedule, settings=settings, **given)
    schedule = PruningSchedule(dense_epochs=1, finetune_epochs=1)
    return LayerwisePruning(schedule=schedule, settings=LayerwiseSettings(kind), **given)


def main(folder, *kinds):
    images = torch.randn(96, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    left = {}
    for kind in kinds:
        pl.seed_everything(0, verbose=False)
        module, pruning = Tiny(), callback(kind)
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[pruning],
        )
        labels = images.mean(dim=(1, 2, 3)).gt(0).long()
        trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True))
        assert pruning.frozen
        weights = {name: value.detach() for name, value in module.named_parameters()}
        left[kind] = {"masks": pruning.masks, "weights": weights}
    torch.save(left, os.path.join(folder, f"{trainer.global_rank}.pt"))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(200, exit=True)  # says where, should it hang
    main(*sys.argv[1:])
