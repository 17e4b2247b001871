"""Templates and number formats that the pages share."""

import importlib.metadata
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@cache
def environment() -> Environment:
    """The Jinja2 environment: escapes all text, knows the formats below."""
    loader = PackageLoader("crosspruner.reporting", "templates")
    env = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals |= {
        "asset": lambda name: Markup(loader.get_source(env, name)[0]),
        "percent": percent,
        "count": count,
        "version": _version(),
    }
    return env


def render(template: str, path: Path, **values: Any) -> Path:
    """Write a template to `path`."""
    return write_whole(path, environment().get_template(template).render(**values))


def write_whole(path: Path, text: str) -> Path:
    """Write a file in one step: no reader sees half of it, whoever else writes it meanwhile."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    draft.write_text(text, encoding="utf-8")
    return draft.replace(path)


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def percent(value: Any, digits: int = 1) -> str:
    """Fraction -> `51.4 %`."""
    known = number(value)
    return DASH if known is None else f"{100 * known:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def count(value: Any) -> str:
    """Count -> `1,320`."""
    known = number(value)
    return DASH if known is None else f"{known:,.0f}"


def points(value: Any) -> str:
    """Difference of two fractions -> `+0.3 points`, with a true minus sign."""
    known = number(value)
    if known is None:
        return DASH
    rounded = round(100 * known, 1)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f} points"


def duration(seconds: Any) -> str:
    """Seconds -> `4 min 12 s`."""
    known = number(seconds)
    if known is None:
        return ""
    minutes, rest = divmod(round(known), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _version() -> str:
    try:
        return importlib.metadata.version("crosspruner")
    except importlib.metadata.PackageNotFoundError:
        return ""
