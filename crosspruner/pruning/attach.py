"""`attach`: prunes while a training loop of one's own trains. No Lightning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, MappingSpec
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.saving import save_pruned
from crosspruner.pruning.schedule import PruningSchedule
from crosspruner.pruning.step_pruner import StepPruner
from crosspruner.pruning.step_solver import StepSettings


class Attached(StepPruner):
    """What `attach` returns: a `StepPruner` that follows an optimizer.

    Besides the methods below: `plan` (packed, of what is left), `dense_plan`, `masks`, `saved`
    (fraction of the compute crossbars), `compute_crossbars`, `frozen` and `metrics(steps)`.
    """

    network: nn.Module
    steps = 0
    """Optimizer steps taken so far."""
    _owed = False
    _on_optimizer: torch.utils.hooks.RemovableHandle | None = None

    def follow(self, network: nn.Module, optimizer: Optimizer, total_steps: int) -> None:
        """Put the network's layers under masks and listen to the optimizer."""
        self.network = network
        self.total_steps = total_steps
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
            raise ConfigError("step() after detach(): attach to the network again to go on pruning")
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
                "the optimizer stepped twice without step() of what attach() returned between: "
                "call it after each optimizer.step()"
            )
        if any(callable(value) for value in (*args[1:], *kwargs.values())):  # args[0]: itself
            raise ConfigError(
                "optimizer.step(closure) computes gradients while it steps: attach() needs an "
                "optimizer that is stepped after loss.backward(), without a closure"
            )
        self.before_step(self.steps)
        self._owed = True


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    crossbar: Crossbar | str = "256x256",
    mapping: MappingSpec | str = "semifolded",
    grain: str = "column",
    ratio: float = 0.5,
    *,
    total_steps: int,
    input_shape: Sequence[int],
    schedule: PruningSchedule | None = None,
    settings: StepSettings | None = None,
    budget: BudgetSettings | str = "uniform",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
) -> Attached:
    """Prune a network while a training loop of one's own trains it.

        pruning = cp.attach(model, optimizer, "256x256", ratio=0.5, total_steps=steps,
                            input_shape=(3, 32, 32))
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            pruning.step()

    Masks, budget, schedule and draws are those of `CrossbarPruning`: from the same seed and the
    same batches both end with the same masks. Works with gradient accumulation, gradient scalers,
    mixed precision, clipping, torch.compile and DistributedDataParallel (attach on every process).

    Args:
        model: the network, on the device it trains on; compiled or wrapped in
            DistributedDataParallel as well. Evaluate it under `torch.no_grad()`: passes with
            gradients count as training.
        optimizer: what trains it. Gradients of pruned weights are zeroed before each of its steps.
        crossbar: a `Crossbar` or text like "256x256".
        mapping: "folded", "semifolded", "unfolded", "liang2018" or a `MappingSpec`.
        grain: "crossbar" or "column".
        ratio: fraction of the model's compute crossbars to remove, in [0, 1).
        total_steps: optimizer steps of the whole run, >= 1.
        input_shape: (C, H, W) of one input.
        schedule: lengths of the phases, whose proportions are laid over `total_steps`; None: half
            of the steps prune, half fine-tune.
        settings: the solver and its steps; None = `lgd_rpp` on the reconstruction objective.
        budget: "uniform", or `BudgetSettings` with ratios per layer.
        include: dotted-name patterns of the layers that may be pruned; None = all.
        exclude: dotted-name patterns of those that may not; None = the first and the last layer.
        seed: of all draws.

    Returns:
        An object whose `step()` belongs after each `optimizer.step()`.

    Raises:
        ConfigError: an argument is out of range.
        BudgetError: the ratio cannot be met.
        MappingError: Kin or Kout does not fit.

    Source: see `StepPruner`.
    """
    if total_steps < 1:
        raise ConfigError(f"total_steps={total_steps}: give the optimizer steps of the whole run")
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer is a {type(optimizer).__name__}: give the torch optimizer that trains the "
            "network, cp.attach(model, optimizer, ...)"
        )
    pruning = Attached(
        *(crossbar, mapping, grain, ratio, schedule, settings, budget, include, exclude, seed)
    )
    network = bare(model)
    pruning.prepare(network, input_shape)
    pruning.follow(network, optimizer, total_steps)
    return pruning


def bare(model: nn.Module) -> nn.Module:
    """The network inside what torch.compile and DistributedDataParallel make of it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
