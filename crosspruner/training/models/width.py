"""Networks by a width factor."""

from crosspruner.errors import ModelError


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1.

    Raises:
        ModelError: width is not in (0, 8].
    """
    if not isinstance(width, int | float) or not 0.0 < width <= 8.0:
        raise ModelError(
            f"model.width={width} given: it must be above 0 and at most 8 "
            "(1 is the published network, 0.5 has half of its feature maps)."
        )
    return max(1, round(channels * width))
