"""Pictures of what survives: one small image per layer, units down, input groups across."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

PAGE_PIXELS = 1_600_000
"""Pixels that all survival pictures of one page may take together: 2 MB at the very worst."""

# One blue that stands out from a light and from a dark page alike (contrast over 3:1 to both).
_COLOUR = (43, 134, 166)
_LEVELS = 16


@dataclass(frozen=True)
class SurvivalMap:
    """The picture of one layer."""

    layer: str
    shape: tuple[int, int]
    """Units (output groups, or single outputs at column grain) and input groups."""
    kept: float
    """Fraction of the groups that survive, 0 to 1."""
    idle_inputs: int
    """Input groups that no unit uses any more."""
    image: str
    """PNG as a data address."""
    aspect: float
    """Width over height at which to show the picture."""

    @property
    def alt(self) -> str:
        """The picture in words."""
        units, groups = self.shape
        words = f"{self.layer}: {self.kept:.1%} of {units} x {groups} groups survive"
        return words + (f", {self.idle_inputs} input groups unused" if self.idle_inputs else "")


def survival_map(layer: str, share: np.ndarray, max_pixels: int = 1 << 16) -> SurvivalMap:
    """Draw which groups of one layer survive.

    Args:
        layer: Name of the layer.
        share: (units, input groups); a mask of 0 and 1, or the share of runs in which each
            group survived, 0 to 1.
        max_pixels: Larger masks are averaged down to about this many pixels.
    """
    share = np.asarray(share, dtype=np.float32)
    return SurvivalMap(
        layer=layer,
        shape=(share.shape[0], share.shape[1]),
        kept=float(share.mean()) if share.size else 1.0,
        idle_inputs=int((share.max(axis=0) == 0).sum()) if share.size else 0,
        image=data_uri(shrink(share, max_pixels)),
        aspect=float(np.clip(share.shape[1] / max(share.shape[0], 1), 1.0, 2.4)),
    )


def survival_maps(
    masks: dict[str, np.ndarray], order: list[str] | None = None, max_pixels: int = PAGE_PIXELS
) -> list[SurvivalMap]:
    """Survival pictures of all masked layers, in the order of the network.

    Args:
        masks: Layer name -> (units, input groups), values 0 to 1.
        order: Layer names in order; masked layers that it does not name come last.
        max_pixels: Bound on the pixels of all pictures together.
    """
    names = [name for name in order or [] if name in masks]
    names += [name for name in masks if name not in names]
    limit = min(1 << 16, max_pixels // max(len(names), 1))
    return [survival_map(name, masks[name], limit) for name in names]


def shrink(share: np.ndarray, max_pixels: int) -> np.ndarray:
    """Average neighbouring groups until at most `max_pixels` are left.

    Args:
        share: (height, width), float.
        max_pixels: Bound on height x width of the result; at least 1.

    Returns:
        (height', width'), float, as it came where it already fits.
    """
    height, width = share.shape
    while height * width > max_pixels:
        height, width = (-(-height // 2), width) if height >= width else (height, -(-width // 2))
    if (height, width) == share.shape:
        return share
    rows = np.linspace(0, share.shape[0], height + 1).astype(int)
    columns = np.linspace(0, share.shape[1], width + 1).astype(int)
    total = np.add.reduceat(np.add.reduceat(share, rows[:-1], axis=0), columns[:-1], axis=1)
    return total / np.outer(np.diff(rows), np.diff(columns))


def data_uri(share: np.ndarray) -> str:
    """Shares 0 to 1 as a PNG in which what survives is opaque and what is gone is clear."""
    levels = np.rint(np.clip(share, 0, 1) * (_LEVELS - 1)).astype(np.uint8)
    image = Image.frombytes("P", (levels.shape[1], levels.shape[0]), levels.tobytes())
    image.putpalette([channel for _ in range(_LEVELS) for channel in _COLOUR])
    alpha = bytes(round(255 * level / (_LEVELS - 1)) for level in range(_LEVELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=alpha, bits=4, optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
