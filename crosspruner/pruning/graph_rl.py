"""Graph reinforcement learning on crossbars: an agent says which input groups may go first.

The nodes of the graph are the input groups of all prunable layers; groups of one layer and of
layers that follow each other are joined. The agent keeps or drops each node. Dropping makes the
groups of that node cheap, not gone: the choice over all layers (`global_choice`) then takes exactly
the crossbars asked for, so every action is feasible. Its value is how little the predictions on the
calibration images move, with batch norms that use the statistics of those images; nothing is
fine-tuned in the loop.

Source: resource-aware graph reinforcement learning, Balemans et al. 2025 (arXiv 2509.10526). Read
from the abstract: a graph encoder, binary actions, a resource constraint, self-competition. Input
groups for channels, the projection for their constraint, and the rest are our reading.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from crosspruner.hardware.plan import Plan
from crosspruner.pruning.global_choice import choose_masks
from crosspruner.pruning.group_slopes import group_slopes
from crosspruner.pruning.trial_masks import on_trial
from crosspruner.pruning.walk import forward
from crosspruner.solver.self_competition import SearchSettings, search
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)

DROPPED = 0.05
"""What is left of the worth of a group whose node was dropped."""

IMAGES = 128
"""Calibration images that an episode is judged on."""


@torch.no_grad()
def graph_rl_masks(
    network: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    users: Mapping[str, Sequence[str]],
    ratio: float,
    batches: Sequence[Tensor],
    generator: torch.Generator,
    settings: SearchSettings | None = None,
) -> dict[str, Tensor]:
    """Choose the masks of all layers.

    Args:
        network: dense, in evaluation mode; its weights are put back.
        plan, layouts, users, ratio, batches: as for `falcon_masks`.
        generator: CPU generator of the labels and of the agent.
        settings: of the search; None = the defaults.

    Returns:
        Layer name -> (U, P) bool at the exact budget: the best that any episode has met.
    """
    images = torch.cat(list(batches))[:IMAGES]
    sizes = [layout.input_groups for layout in layouts.values()]
    with on_trial(network, layouts) as trial:
        slopes = group_slopes(network, layouts, users, trial.matrices, batches, generator)
        worth = {n: slopes[n].double().square().mean(0).view(la.shape) for n, la in layouts.items()}

        def masks_of(action: Tensor) -> dict[str, Tensor]:
            factors = torch.where(action, 1.0, DROPPED).split(sizes)
            scores = {n: worth[n] * own for n, own in zip(layouts, factors, strict=True)}
            return choose_masks(scores, plan, layouts, ratio)

        with own_statistics(network):
            before = forward(network, images).float().log_softmax(1)

            def value(action: Tensor) -> float:
                trial.put(masks_of(action))
                now = forward(network, images).float().log_softmax(1)
                return -float(F.kl_div(now, before, log_target=True, reduction="batchmean"))

            found = search(
                *(node_features(plan, layouts, worth), joined(sizes), value, generator, settings)
            )
    log.info(
        "graph_rl: divergence of the predictions %.4f without the agent, %.4f by the best of %d "
        "episodes",
        *(-found.values[0], -found.value, len(found.values)),
    )
    return masks_of(found.action)


def node_features(
    plan: Plan, layouts: Mapping[str, GroupLayout], worth: Mapping[str, Tensor]
) -> Tensor:
    """(n, 8) per input group: depth of its layer, sizes, crossbars, and what it is worth.

    Args:
        plan: the dense plan.
        layouts: the prunable layers.
        worth: layer name -> (U, P) >= 0.
    """
    layers = len(layouts)
    own = {name: value.sum(0).float() for name, value in worth.items()}
    total = torch.cat(list(own.values())).mean().clamp(min=torch.finfo(torch.float32).tiny)
    rows = []
    for depth, (name, layout) in enumerate(layouts.items()):
        nodes = layout.input_groups
        value = own[name]
        mean = value.mean().clamp(min=torch.finfo(value.dtype).tiny)
        share = layout.blocks * layout.crossbars_per_block / plan.compute_crossbars
        constant = torch.tensor(
            [
                depth / max(layers - 1, 1),
                torch.tensor(float(layout.out_channels)).log10(),
                torch.tensor(float(layout.fan_in)).log10(),
                share,
                layout.crossbars_per_block / 100,
            ]
        ).expand(nodes, 5)
        place = torch.linspace(0, 1, nodes)
        relative = torch.stack([place, (value / mean).log1p(), (value / total).log1p()], 1)
        rows.append(torch.cat([constant, relative], 1))
    return torch.cat(rows)


def joined(sizes: Sequence[int]) -> Tensor:
    """(n, n) bool: nodes of one layer and of layers that follow each other see one another.

    Args:
        sizes: nodes of each layer.
    """
    layer = torch.arange(len(sizes)).repeat_interleave(torch.tensor(list(sizes)))
    return (layer.unsqueeze(0) - layer.unsqueeze(1)).abs() <= 1


@contextmanager
def own_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics of what passes through them inside; their own ones stay."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [{k: v.clone() for k, v in norm.named_buffers()} for norm in norms]
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm, buffers, mode in zip(norms, kept, modes, strict=True):
            norm.training = mode
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
