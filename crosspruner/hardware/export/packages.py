"""Optional packages, asked for by name only when an export needs them."""

from importlib import import_module
from types import ModuleType

from crosspruner.errors import ModelError


def needs(*names: str) -> list[ModuleType]:
    """Imports packages of the `export` extra.

    Raises:
        ModelError: one is not installed; the message says how to install it.
    """
    modules = []
    for name in names:
        try:
            modules.append(import_module(name))
        except ImportError as error:
            raise ModelError(
                f"this export needs {name}: install it with  pip install 'crosspruner[export]'"
            ) from error
    return modules
