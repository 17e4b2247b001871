"""How a running fit shows itself: a bar in a terminal, one line per epoch in every log."""

import logging
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

log = logging.getLogger(__name__)

_PHASES = ("dense", "prune", "fine-tune")


EPOCHS = ".epochs"
"""File in a run folder: epochs trained and epochs in all, such as `3/12`."""


class EpochLines(pl.Callback):
    """Logs one line at the end of each epoch: what was trained, how well, how much is left.

    Args:
        folder: the run folder; keeps how far the run is, for the overall progress of a sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        phase = _PHASES[int(metrics.get("prune/phase", 0))]
        shown = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} {phase}"]
        for name, text in (
            ("train/loss", "train loss {:.4f}"),
            ("train/acc", "train acc {:.2%}"),
            ("val/acc", "val acc {:.2%}"),
            ("prune/ratio", "crossbars removed {:.1%}"),
        ):
            if name in metrics:
                shown.append(text.format(metrics[name]))
        if trainer.is_global_zero:
            log.info("  ".join(shown))
            (self.folder / EPOCHS).write_text(f"{trainer.current_epoch + 1}/{trainer.max_epochs}")


def progress_callbacks(folder: Path, bar: bool) -> list[pl.Callback]:
    """The epoch lines, and a rich progress bar of the fit where it is asked for."""
    bars: list[pl.Callback] = [RichProgressBar()] if bar else []
    return [*bars, EpochLines(folder)]
