"""Weights from the Hugging Face hub: said at once, and not after a minute, where it is far away."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

SECONDS = 5.0
"""How long the hub may take to answer before it counts as out of reach."""


def why_out_of_reach() -> str:
    """Why the hub cannot be reached, or "" where it can (proxies of the environment are used)."""
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # it has answered
    except OSError as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return ""


@contextmanager
def hub_or_cache() -> Iterator[str]:
    """Inside, the hub's client looks in its cache alone where the hub cannot be reached.

    Left to itself it would try again for a minute, with a line of its own for each attempt.

    Yields:
        Why the hub cannot be reached; "" where it can.
    """
    asked_for, why = constants.HF_HUB_OFFLINE, ""
    if not asked_for:
        why = why_out_of_reach()
    constants.HF_HUB_OFFLINE = asked_for or bool(why)
    try:
        yield "HF_HUB_OFFLINE is set" if asked_for else why
    finally:
        constants.HF_HUB_OFFLINE = asked_for
