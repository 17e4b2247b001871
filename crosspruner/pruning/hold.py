"""`hold`: fine-tunes what `prune` returned in a training loop of one's own. No Lightning."""

from torch import nn
from torch.optim import Optimizer

from crosspruner.pruning.fixed_masks import FixedMasks
from crosspruner.pruning.loop import LoopPruner, bare, check_optimizer
from crosspruner.pruning.oneshot import PruneResult


class Held(FixedMasks, LoopPruner):
    """What `hold` returns: `FixedMasks` that follow an optimizer; see `LoopPruner`."""


def hold(result: PruneResult, optimizer: Optimizer, model: nn.Module | None = None) -> Held:
    """Keep what was pruned at zero while a training loop of one's own fine-tunes.

        result = cp.prune(model, calibration_loader, "256x256", ratio=0.5)
        optimizer = torch.optim.SGD(result.model.parameters(), lr=0.01, momentum=0.9)
        held = cp.hold(result, optimizer)
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(result.model(images), labels).backward()
            optimizer.step()
            held.step()

    Args:
        result: what `crosspruner.prune` returned.
        optimizer: what trains the network. Gradients of pruned weights are zeroed before each of
            its steps.
        model: the network that is trained, on its device, compiled or wrapped as well; None =
            `result.model`.

    Returns:
        An object whose `step()` belongs after each `optimizer.step()`.

    Raises:
        ConfigError: that is no optimizer, or it trains another network: `prune` returns a copy.
        PlanError: the network is not the one that was pruned.
    """
    network = bare(result.model if model is None else model)
    wanted = "result.model.parameters()" if model is None else "model.parameters()"
    check_optimizer(optimizer, network, wanted)
    held = Held(result)
    held.follow(network, optimizer)
    return held
