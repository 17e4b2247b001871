"""What is typed on the command line: its order, and what Hydra's messages say of it.

Not in `crosspruner`, which imports torch: seconds, for a slip of the keyboard. Hydra passes over
modules that begin with an underscore when it looks for plugins.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

# Flags whose value may look like an override
TAKE_A_VALUE = ("--shell-completion", "-sc", "--config-path", "-cp", "--config-dir", "-cd")

NO_SUCH_KEY = re.compile(r"Could not override '([^']+)'\. To append to your config use \+\S+")
NO_SUCH_SIZE = re.compile(r"Could not find 'crossbar/([1-9]\d*)x([1-9]\d*)'")


def flags_first(words: Sequence[str]) -> list[str]:
    """The same words with the flags before the overrides: Hydra refuses `a=1 -m b=2,3`."""
    flags: list[str] = []
    overrides: list[str] = []
    for before, word in pairwise(["", *words]):
        looks = word[:1] == "~" or (word[:1] != "-" and "=" in word)
        (overrides if looks and before not in TAKE_A_VALUE else flags).append(word)
    return [*flags, *overrides]


def one_line(error: BaseException, config: Path) -> str:
    """The message of an error in one line, with what to type instead of what Hydra proposes.

    Args:
        error: raised by Hydra, or by what it ran.
        config: the primary configuration file; groups lie beside it.
    """
    text = " ".join(str(error).split("Config search path")[0].split()) or type(error).__name__
    if size := NO_SUCH_SIZE.search(text):
        text += f". For any other size type crossbar.rows={size[1]} crossbar.cols={size[2]}"
    if missing := NO_SUCH_KEY.search(text):
        text = text.replace(missing[0], _no_such_key(missing[1], config) or missing[0])
    return text


def _no_such_key(key: str, config: Path) -> str:
    """What to say of a key that is not there; nothing where appending one may help."""
    group, _, rest = key.partition(".")
    choices = {file.stem: file for file in sorted((config.parent / group).glob("*.yaml"))}
    if "." in rest or any("_target_" in file.read_text() for file in choices.values()):
        return ""  # a class, or Hydra's sweeper, may well take it
    keys = {name: set(_content(file)) - {"defaults"} for name, file in choices.items()}
    if having := [f"{group}={name}" for name, found in keys.items() if rest in found]:
        return f"{key}: the chosen {group} has no such key, but {', '.join(having[:4])} has"
    if choices:
        near = [f"{group}.{k}" for k in get_close_matches(rest, set().union(*keys.values()), n=1)]
    else:
        near = get_close_matches(group, _names(config), n=1)
    return f"{key}: there is no such key. " + (
        f"Did you mean {near[0]}?" if near else "--help tells of those that are"
    )


def _names(config: Path) -> list[str]:
    """The keys of the primary configuration, and its groups."""
    content = _content(config)
    entries = [entry for entry in content.pop("defaults") if isinstance(entry, dict)]
    return [*content, *(str(group).split()[-1] for entry in entries for group in entry)]


def _content(file: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
