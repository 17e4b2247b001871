"""Matplotlib figures that live inside a page: vector, accessible, light and dark.

Figures are drawn in the light palette below. `inline_svg` then turns every palette colour into
a CSS variable with that colour as its fallback, so the page's dark mode recolours figures as it
recolours text. `save_figure` writes the same figure as plain files, in the light palette.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = {
    "ink": "#16202a",
    "muted": "#55636f",
    "line": "#d5dce1",
    "ghost": "#c3ced6",
    "keep": "#0a6b87",
    "warm": "#b2500a",
    "series-0": "#0b6f8b",
    "series-1": "#b2510b",
    "series-2": "#3f7d1f",
    "series-3": "#8a3fa0",
    "series-4": "#a8324a",
    "series-5": "#6b6a12",
    "series-6": "#2f5bb0",
    "series-7": "#7a5a3c",
}
"""Name of the CSS variable -> its light value. The dark values are in templates/style.css."""

SERIES = [PALETTE[f"series-{i}"] for i in range(8)]

WIDTH = 5.2
"""Width of a figure in inches: 374 CSS units, the width of a phone, so text stays readable."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crosspruner",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": PALETTE["line"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.unicode_minus": False,
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.6,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["line"],
    "ytick.color": PALETTE["line"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.6,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "text.parse_math": False,
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_COLOUR = re.compile("|".join(PALETTE.values()))
_COORDINATES = {"d", "x", "y", "transform"}
_LONG = re.compile(r"-?\d+\.\d{3,}")
_NAME_OF = {colour: name for name, colour in PALETTE.items()}


@contextmanager
def drawing() -> Iterator[None]:
    """The house style, for the time a figure is made and saved."""
    with rc_context(_STYLE), warnings.catch_warnings():
        # A run or a layer may be named in any script; the browser has the font, we need not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def new_axes(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty figure with one set of axes; sizes in inches. Call within `drawing()`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def inline_svg(
    figure: Figure,
    prefix: str,
    title: str,
    description: str,
    link_names: Mapping[str, str] | None = None,
) -> str:
    """The figure as an SVG element for an HTML page.

    Args:
        figure: The figure; made within `drawing()`.
        prefix: Put before every id, so that several figures can share one page.
        title: Accessible name.
        description: What the picture shows, in words, for those who do not see it.
        link_names: Address -> what to show when the pointer is on that link. Links in a figure
            are a convenience for the pointer: they are no tab stops, so the same links must be
            offered elsewhere on the page.
    """
    text = _svg_text(figure)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(text)
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    for node in root.iter():
        # Paths are half of a page: a hundredth of a CSS unit is finer than any screen shows.
        for key in _COORDINATES & node.attrib.keys():
            node.set(key, _LONG.sub(lambda m: f"{float(m.group()):.2f}", node.attrib[key]))
        if "id" in node.attrib:
            node.set("id", f"{prefix}-{node.get('id')}")
        for key, value in node.attrib.items():
            if value.startswith("#") and key.endswith("href"):
                node.set(key, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                node.set(key, value.replace("url(#", f"url(#{prefix}-"))
    for anchor in root.iter(f"{{{_SVG}}}a"):
        address = anchor.get(f"{{{_XLINK}}}href", "")
        name = ElementTree.SubElement(anchor, f"{{{_SVG}}}title")
        name.text = (link_names or {}).get(address, address)
        anchor.set("tabindex", "-1")
        anchor.attrib.pop("target", None)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")
    for index, (tag, words) in enumerate((("title", title), ("desc", description))):
        node = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{prefix}-{tag}"})
        node.text = words
        root.insert(index, node)
    markup = ElementTree.tostring(root, encoding="unicode")
    return _COLOUR.sub(lambda m: f"var(--{_NAME_OF[m.group()]}, {m.group()})", markup)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write the figure as `stem.svg` and `stem.png` (light palette, white ground)."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")]
    with drawing():
        paths[0].write_text(_svg_text(figure, facecolor="white"))
        figure.savefig(paths[1], dpi=160, facecolor="white")
    return paths


def _svg_text(figure: Figure, facecolor: str = "none") -> str:
    buffer = io.StringIO()
    with drawing():
        # No date and no program name: the same run gives the same bytes.
        figure.savefig(
            buffer,
            format="svg",
            facecolor=facecolor,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return buffer.getvalue()
