"""What survived, layer by layer, over the runs of a series."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from crosspruner.reporting.figures import shorten
from crosspruner.reporting.run_folder import RunFolder
from crosspruner.reporting.series import Series
from crosspruner.reporting.svg import PALETTE, drawing, new_axes

# Stands out from light and dark pages alike; the same as in the survival pictures.
_HEAT = "#2b86a6"
_MAX_LABELS = 8


def kept_by_layer(series: Series, runs: Sequence[RunFolder]) -> pd.DataFrame:
    """Fraction of its compute crossbars that each layer keeps.

    Args:
        series: The line.
        runs: All runs of the sweep.

    Returns:
        A row per layer in the order of the network, a column per group of the series named by the
        crossbars saved (`48.8%`); mean over seeds. Empty where no layer table was written.
    """
    columns = []
    for group in series.groups.to_dict("records"):
        tables = [runs[i].layers for i in group["members"]]
        shares = [
            (t["compute"].astype(float) / t["compute_dense"].astype(float)).set_axis(t["layer"])
            for t in tables
            if not t.empty
        ]
        if shares:
            mean = pd.concat(shares, axis=1).mean(axis=1)
            columns.append(mean.rename(f"{group['saved']:.1%}"))
    return pd.concat(columns, axis=1) if columns else pd.DataFrame()


def layer_heat(kept: pd.DataFrame) -> Figure:
    """Draw `kept_by_layer`: layers down, growing savings across; full colour = all kept."""
    share = np.clip(np.nan_to_num(kept.to_numpy(float)), 0, 1)
    pixels = np.empty((*share.shape, 4))
    pixels[..., :3] = to_rgb(_HEAT)
    pixels[..., 3] = share
    with drawing():
        figure, axes = new_axes(height=0.7 + 0.2 * len(kept))
        axes.imshow(pixels, aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(kept)), [shorten(str(name)) for name in kept.index])
        step = -(-len(kept.columns) // _MAX_LABELS)
        places = range(0, len(kept.columns), step)
        axes.set_xticks(places, [kept.columns[i] for i in places])
        axes.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])
        axes.set_xlabel("compute crossbars saved in all")
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(0.5, len(kept.columns) - 1), minor=True)
        axes.set_yticks(np.arange(0.5, len(kept) - 1), minor=True)
        axes.grid(which="minor", linewidth=0.5)
        axes.tick_params(which="minor", length=0)
    return figure


def survival_share(series: Series, runs: Sequence[RunFolder]) -> dict[str, np.ndarray]:
    """Share of the runs of a series in which each group of each layer survived.

    Returns:
        Layer name -> (units, input groups), 0 to 1. A layer whose groups are not the same in all
        runs (another Kin, another grain) is counted over the runs that agree with the first.
    """
    total: dict[str, np.ndarray] = {}
    seen: dict[str, int] = {}
    for index in series.runs.index:
        for name, mask in runs[index].masks.items():
            if name not in total:
                total[name] = np.zeros(mask.shape, dtype=np.float32)
                seen[name] = 0
            if mask.shape == total[name].shape:
                total[name] += mask
                seen[name] += 1
        runs[index].__dict__.pop("masks", None)  # 500 runs of masks would fill the memory
    return {name: total[name] / seen[name] for name in total}
