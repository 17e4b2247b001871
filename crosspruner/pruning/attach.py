"""`attach`: prunes while a training loop of one's own trains. No Lightning."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from crosspruner.errors import ConfigError
from crosspruner.hardware import Crossbar, MappingSpec
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.loop import LoopPruner, bare, check_optimizer
from crosspruner.pruning.schedule import PruningSchedule
from crosspruner.pruning.step_pruner import StepPruner
from crosspruner.pruning.step_settings import StepSettings


class Attached(StepPruner, LoopPruner):
    """What `attach` returns: a `StepPruner` that follows an optimizer; see `LoopPruner`."""


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
        ConfigError: an argument is out of range, or the optimizer trains another network.
        BudgetError: the ratio cannot be met.
        MappingError: Kin or Kout does not fit.

    Source: see `StepPruner`.
    """
    if total_steps < 1:
        raise ConfigError(f"total_steps={total_steps}: give the optimizer steps of the whole run")
    network = bare(model)
    check_optimizer(optimizer, network, "the parameters() of the network that attach() is given")
    pruning = Attached(
        *(crossbar, mapping, grain, ratio, schedule, settings, budget, include, exclude, seed)
    )
    pruning.prepare(network, input_shape)
    pruning.total_steps = total_steps
    pruning.follow(network, optimizer)
    return pruning
