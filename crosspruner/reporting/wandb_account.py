"""Whether this machine has a Weights & Biases account, and what that means for a run."""

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from crosspruner.errors import ConfigError

MODES = ("auto", "online", "offline", "disabled")
"""Values of `logger.wandb.mode`."""

_HOST = "https://api.wandb.ai"


def resolve_mode(mode: str) -> str:
    """`auto` -> what it comes to on this machine; the others as they are.

    Raises:
        ConfigError: `mode=online` without an account.
    """
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE", "").lower()
        mode = {"dryrun": "offline", "run": "online"}.get(asked, asked)
        if mode not in MODES[1:]:
            mode = "online"
        # WANDB_MODE=online says where to, not that there is an account: still no prompt.
        return "offline" if mode == "online" and not has_account() else mode
    if mode == "online" and not has_account():
        raise ConfigError(
            "logger.wandb.mode=online needs an account, and none is configured on this machine: "
            "type `wandb login`, set WANDB_API_KEY, or use logger.wandb.mode=offline"
        )
    return mode


def has_account() -> bool:
    """Whether credentials for the wandb server are configured: a variable, or the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(_server()).hostname or ""
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(name).expanduser() for name in files if name):
        try:
            if netrc.netrc(file).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _server() -> str:
    """Address of the wandb server: WANDB_BASE_URL, what `wandb login` noted, or theirs."""
    if os.environ.get("WANDB_BASE_URL"):
        return os.environ["WANDB_BASE_URL"]
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    noted = configparser.ConfigParser(interpolation=None)
    try:
        noted.read(folder / "settings")
    except (configparser.Error, UnicodeDecodeError):
        return _HOST
    return noted.get("default", "base_url", fallback=_HOST)
