"""Shared by all tests."""

from hypothesis import settings

import crosspruner  # noqa: F401  (before any test: mends torchvision where it does not fit torch)

# Machines differ and are shared: how long an example takes is no matter of right or wrong.
settings.register_profile("crosspruner", deadline=None)
settings.load_profile("crosspruner")
