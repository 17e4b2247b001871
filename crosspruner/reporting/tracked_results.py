"""What a finished run adds to its wandb run: summary, layer table, survival pictures, artifact."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from crosspruner.reporting.run_folder import RunFolder
from crosspruner.reporting.survival import shrink, survival_map

_SMALLEST = 192
"""Pictures are enlarged to at least this many pixels a side, whole groups at a time."""


@rank_zero_only
def log_results(logger: WandbLogger | None, folder: Path) -> None:
    """Log the results in a run folder to its wandb run; call it before the run is finished.

    Logs every field of `summary.json` as a summary value, `crossbars.csv` as the table `layers`,
    one picture per pruned layer under `survival`, and, for an online run, the folder `pruned/` as
    an artifact.

    Args:
        logger: What `tracked` yields; None does nothing.
        folder: The run folder.
    """
    if logger is None:
        return
    import wandb

    run = logger.experiment
    found = RunFolder(folder)
    logged: dict[str, Any] = {}
    if not found.layers.empty:
        logged["layers"] = wandb.Table(dataframe=found.layers.astype(object))
    pictures = [
        wandb.Image(survival_picture(mask), caption=survival_map(name, mask).alt)
        for name, mask in found.masks.items()
    ]
    if pictures:
        logged["survival"] = pictures
    if logged:
        run.log(logged)
    run.summary.update(found.summary)
    if not run.offline and (folder / "pruned").is_dir():
        artifact = wandb.Artifact(f"pruned-{run.id}", type="model", metadata=found.summary)
        artifact.add_dir(str(folder / "pruned"))
        run.log_artifact(artifact)


def survival_picture(mask: np.ndarray) -> Image.Image:
    """A mask (units, input groups) as a picture: dark = kept, white = pruned."""
    share = shrink(mask.astype(np.float32), 1 << 18)
    ground, ink = np.array([255, 255, 255]), np.array([10, 107, 135])
    pixels = ground + share[..., None] * (ink - ground)
    for axis in (0, 1):
        pixels = pixels.repeat(-(-_SMALLEST // pixels.shape[axis]), axis=axis)
    return Image.fromarray(pixels.astype(np.uint8))
