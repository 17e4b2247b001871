"""The solvers that choose the masks of all layers at once, by name.

    name                chooses by
    falcon              the loss's second order over all groups, crossbars as the price
    performance_aware   edges of each layer's staircase of crossbars, by what each costs alone
    graph_rl            an agent that competes with its own past, over the graph of input groups
    torch_pruning       whole channels, by the dependency graph of that package

What the first ones choose is refitted layer by layer like the masks of every other solver.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware.plan import Plan
from crosspruner.pruning.falcon import falcon_masks
from crosspruner.pruning.graph_rl import graph_rl_masks
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.performance_aware import performance_aware_masks
from crosspruner.sparsity import GroupLayout

Choose = Callable[
    [
        nn.Module,
        Plan,
        Mapping[str, GroupLayout],
        Mapping[str, Sequence[str]],
        float,
        Sequence[Tensor],
        torch.Generator,
    ],
    dict[str, Tensor],
]
"""(dense network, plan, layouts, users, ratio, calibration images, generator) -> masks."""

NETWORK_SOLVERS: dict[str, Choose] = {
    "falcon": falcon_masks,
    "performance_aware": performance_aware_masks,
    "graph_rl": graph_rl_masks,
}

CHANNEL_SOLVER = "torch_pruning"
WHOLE_NETWORK = (*NETWORK_SOLVERS, CHANNEL_SOLVER)
"""All solvers that see the network as a whole."""


def check_network_solver(settings: LayerwiseSettings, budget: str) -> None:
    """Refuse what a solver that chooses over all layers cannot take.

    Raises:
        ConfigError: a reorder, or a budget other than global.
    """
    if settings.solver not in WHOLE_NETWORK:
        return
    if settings.reorder != "none":
        raise ConfigError(
            f"solver={settings.solver} chooses over all layers before any is reordered: type "
            "reorder=none"
        )
    if budget != "global":
        raise ConfigError(
            f"solver={settings.solver} divides the crossbars among the layers itself: type "
            "budget=global"
        )
