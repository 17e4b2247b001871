"""Checks on numbers that a configuration gives, before anything is read."""

from collections.abc import Sequence

from crosspruner.errors import DataError


def check_count(name: str, value: int, least: int) -> None:
    """Raise DataError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise DataError(f"data.{name}={value} given: it must be a whole number, {least} or more.")


def check_fraction(name: str, value: float) -> None:
    """Raise DataError unless `value` lies between 0 and 1, both excluded."""
    if not isinstance(value, int | float) or not 0.0 < value < 1.0:
        raise DataError(
            f"data.{name}={value} given: it must lie between 0 and 1, both excluded (0.1 holds out "
            "a tenth)."
        )


def check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    """Raise DataError unless `value` is one of `choices`, or None."""
    if value is not None and value not in choices:
        raise DataError(
            f"data.{name}={value} given: it must be one of {', '.join(choices)}, or null."
        )


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """One number for both, or the two as they are.

    Raises:
        DataError: neither one nor two whole numbers of at least 1.
    """
    sides = list(image_size) if isinstance(image_size, Sequence) else [image_size] * 2
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise DataError(
            f"data.image_size={image_size} given: it must be a number of pixels, 1 or more, or two "
            "as in data.image_size=[224,160] (height, width)."
        )
    return sides[0], sides[1]
