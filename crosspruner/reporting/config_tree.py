"""The composed configuration as a tree, to be read beside a run."""

from io import StringIO

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.tree import Tree


def config_tree(config: DictConfig) -> str:
    """Draw a configuration, interpolations resolved, one key a line.

    Args:
        config: what hydra composed.

    Returns:
        Plain text.
    """
    root = Tree("config")
    _grow(root, OmegaConf.to_container(config, resolve=True))
    # Wide enough for any value, which would be cut without a mark; and no value is markup.
    console = Console(file=StringIO(), width=10**6, color_system=None, emoji=False)
    console.print(root, markup=False, soft_wrap=True)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def _grow(tree: Tree, values: object) -> None:
    items = values.items() if isinstance(values, dict) else ()
    for key, value in items:
        if isinstance(value, dict) and value:
            _grow(tree.add(str(key)), value)
        else:
            tree.add(f"{key}: {value}")
