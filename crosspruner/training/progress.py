"""How a running fit shows itself: a bar in a terminal, one line per epoch in every log."""

import logging
import sys

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

log = logging.getLogger(__name__)

_PHASES = ("dense", "prune", "fine-tune")


class EpochLines(pl.Callback):
    """Logs one line at the end of each epoch: what was trained, how well, how much is left."""

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


def progress_callbacks() -> list[pl.Callback]:
    """A rich progress bar where there is a terminal, and the epoch lines everywhere."""
    bars: list[pl.Callback] = [RichProgressBar()] if sys.stdout.isatty() else []
    return [*bars, EpochLines()]
