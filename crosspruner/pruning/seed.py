"""The seed of a pruning: one number, one generator for all that is drawn."""

from operator import index
from typing import Any

import torch

from crosspruner.errors import ConfigError


def seeded(seed: Any) -> torch.Generator:
    """A generator for all draws of one pruning.

    Raises:
        ConfigError: the seed is no whole number of 0 or more.
    """
    try:
        number = -1 if isinstance(seed, bool) else index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ConfigError(f"seed={seed!r}: give a whole number of 0 or more")
    return torch.Generator().manual_seed(number)
