"""The calls by which a training loop of one's own drives a `Pruner`. No Lightning."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from crosspruner.errors import ConfigError
from crosspruner.pruning.pruner import Pruner
from crosspruner.pruning.saving import save_pruned


class LoopPruner(Pruner):
    """A `Pruner` that follows an optimizer, and whose `step` belongs after each of its steps.

    Besides the methods below: `plan` (packed, of what is left), `dense_plan`, `masks`, `saved`
    (fraction of the compute crossbars), `compute_crossbars`, `frozen` and `metrics(steps)`.
    """

    network: nn.Module
    steps = 0
    """Optimizer steps taken so far."""
    _owed = False
    _on_optimizer: torch.utils.hooks.RemovableHandle | None = None

    def follow(self, network: nn.Module, optimizer: Optimizer) -> None:
        """Put the network's layers under masks and listen to the optimizer."""
        self.network = network
        self.bind(network)
        self._on_optimizer = optimizer.register_step_pre_hook(self._before_optimizer_step)
        self.before_batch(self.steps)

    def step(self) -> None:
        """Take the step of pruning that belongs to an optimizer step; call it after each.

        A call after a batch that led to no optimizer step (gradients are being accumulated, or a
        gradient scaler has skipped it) does nothing.

        Raises:
            ConfigError: `detach` was called before.
        """
        if self._on_optimizer is None:
            raise ConfigError("step() after detach(): attach to the network again to go on")
        if not self._owed:
            return
        self._owed = False
        self.steps += 1
        self.after_batch(self.steps)
        self.before_batch(self.steps)

    def freeze(self) -> None:
        """The masks stay as they are from now on; the end of the prune phase comes to the same."""
        self.stop_watching()
        super().freeze()

    def detach(self) -> None:
        """Let go of network and optimizer: nothing of crosspruner stays in them, zeros do."""
        self.stop_watching()
        for layer in self.layers.values():
            layer.enforce()
        if self._on_optimizer is not None:
            self._on_optimizer.remove()
            self._on_optimizer = None

    def save(self, folder: str | Path) -> Path:
        """Write weights.safetensors (plain keys), masks.safetensors and mapping.json.

        Returns:
            The folder.
        """
        save_pruned(folder, self.network, self.plan, self.masks)
        return Path(folder)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes; save it beside the model's and the optimizer's."""
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stopped: masks, waiting weights, draws and schedule as they were.

        Call it after the model's own weights and the optimizer's state are loaded.

        Raises:
            CheckpointError: the state is of another model, grain or ratio.
        """
        self.stop_watching()
        super().load_state_dict(state_dict)
        self.bind(self.network)
        self.steps = self.last_step = state_dict["steps"]
        self._owed = False
        self.before_batch(self.steps)

    def _before_optimizer_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._owed:
            raise ConfigError(
                "the optimizer stepped twice without step() of what attach() or hold() returned "
                "between: call it after each optimizer.step()"
            )
        if any(callable(value) for value in (*args[1:], *kwargs.values())):  # args[0]: itself
            raise ConfigError(
                "optimizer.step(closure) computes gradients while it steps: attach() and hold() "
                "need one that is stepped after loss.backward(), without a closure"
            )
        self.before_step(self.steps)
        self._owed = True


def check_optimizer(optimizer: Any, network: nn.Module, wanted: str) -> None:
    """Refuse what does not train the network: its weights would silently stay as they are.

    Args:
        optimizer: what the user gave; it may train a part of the network, and more than it.
        network: the bare network, see `bare`.
        wanted: the parameters to build the optimizer from, as the user would type them.

    Raises:
        ConfigError: it is no optimizer of torch, or holds none of the network's parameters.
    """
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer is a {type(optimizer).__name__}: give the torch optimizer that trains the "
            "network, cp.attach(model, optimizer, ...)"
        )
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if trained.isdisjoint(map(id, network.parameters())):
        raise ConfigError(
            f"the optimizer trains none of this network's parameters: build it from {wanted}"
        )


def bare(model: nn.Module) -> nn.Module:
    """The network inside what torch.compile and DistributedDataParallel make of it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
