"""Weights from a file into a network, with an account of what did not fit."""

import logging
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from crosspruner.errors import CheckpointError

log = logging.getLogger(__name__)

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class WeightsReport:
    """Which keys of a state dict did not find their place in a network."""

    missing: tuple[str, ...] = ()
    """Keys of the network that the file lacks: they keep their values."""
    unexpected: tuple[str, ...] = ()
    """Keys of the file that the network lacks: not used."""
    mismatched: tuple[str, ...] = ()
    """Keys of both whose shapes differ: the network keeps its values."""

    @property
    def complete(self) -> bool:
        """Every key found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        if self.complete:
            return "every key fits"
        parts = {
            "missing in the file": self.missing,
            "not in the model": self.unexpected,
            "of another shape": self.mismatched,
        }
        return "; ".join(f"{what}: {_listed(keys)}" for what, keys in parts.items() if keys)


def load_weights(model: nn.Module, path: str | Path) -> WeightsReport:
    """Load weights into `model`, in place: what fits is taken, the rest is reported and logged.

    Args:
        model: the plain network.
        path: .pt, .pth or .ckpt (a state dict, bare or under "state_dict" or "model"; of Lightning
            checkpoints, DataParallel and compiled models the prefix is taken off the keys), or
            .safetensors. Read with weights_only=True: no code in the file is run.

    Returns:
        The keys that did not fit; all empty after a strict match.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it belongs to another model:
            fewer than half of the model's weights (kernels and matrices) fit. The model is then as
            it was.
    """
    path = Path(path).expanduser()
    state = strip_prefix(read_state(path), model.state_dict().keys())
    fits, report = compare(model, state)
    weights = [key for key, value in model.state_dict().items() if value.ndim > 1]
    fitting = sum(key in fits for key in weights)
    if 2 * fitting < len(weights):
        raise CheckpointError(
            f"model.weights={path} belongs to another model: {fitting} of {len(weights)} weights "
            f"fit ({report}). Give a file of this model (same model.name, model.width and "
            "data.num_classes), or the model of this file."
        )
    model.load_state_dict(fits, strict=False)
    if report.complete:
        log.info("Loaded %s: every key fits", path)
    else:
        log.warning("Loaded %s in part: %s", path, report)
    return report


def fit_state(model: nn.Module, state: Mapping[str, Tensor]) -> WeightsReport:
    """Copy into `model` every entry of `state` whose key and shape it has."""
    fits, report = compare(model, state)
    model.load_state_dict(fits, strict=False)
    return report


def compare(
    model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], WeightsReport]:
    """The entries of `state` that fit `model`, and the account of the others."""
    own = model.state_dict()
    shared = [key for key in own if key in state]
    fits = {key: state[key] for key in shared if state[key].shape == own[key].shape}
    return fits, WeightsReport(
        missing=tuple(key for key in own if key not in state),
        unexpected=tuple(key for key in state if key not in own),
        mismatched=tuple(key for key in shared if key not in fits),
    )


def strip_prefix(state: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
    """Take off the prefix ("net.", "module.") with which most keys are keys of the model.

    Keys without that prefix stay as they are.
    """
    wanted = set(keys)
    prefixes: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in wanted:
                prefixes["".join(part + "." for part in parts[:cut])] += 1
    # the shortest of the most frequent: a prefix is only taken off where that helps
    prefix = max(prefixes, key=lambda p: (prefixes[p], -len(p)), default="")
    return {key.removeprefix(prefix): value for key, value in state.items()}


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, keys as they are there.

    Raises:
        CheckpointError: the file is absent, of another kind, or not readable without running code.
    """
    if path.is_dir():
        raise CheckpointError(
            f"model.weights={path} is a folder. Give a file, of a run for example "
            f"{path}/checkpoints/best.ckpt or {path}/pruned/weights.safetensors."
        )
    if not path.is_file():
        raise CheckpointError(f"model.weights={path} does not exist. Give a file that does.")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"model.weights={path} given: the file must end in {', '.join(SUFFIXES)}."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"model.weights={path} holds Python objects, or is no checkpoint. Only tensors and "
            "plain values are read, as objects can run code: save model.state_dict() and give that."
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointError(
            f"model.weights={path} cannot be read ({error}). It may be cut short: copy it again."
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"model.weights={path} holds no state dict (names and tensors, bare or under "
            '"state_dict"). Save model.state_dict() and give that.'
        )
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _listed(keys: tuple[str, ...], shown: int = 6) -> str:
    rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{len(keys)} ({', '.join(keys[:shown])}{rest})"
