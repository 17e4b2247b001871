"""The layer-wise procedure as a whole: weigh outputs, divide the budget, walk along the network."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Plan
from crosspruner.hardware.evaluation_mode import evaluation
from crosspruner.pruning.budget import global_budget
from crosspruner.pruning.budget_search import search_between
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.channel_pruning import check_channel_settings, remove_channels
from crosspruner.pruning.cost_curves import cost_curves
from crosspruner.pruning.layer_walk import Walk
from crosspruner.pruning.layerwise import prune_layers, users_of
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.measured_costs import measured_costs
from crosspruner.pruning.network_solver import (
    CHANNEL_SOLVER,
    NETWORK_SOLVERS,
    check_network_solver,
)
from crosspruner.pruning.order_search import best_order
from crosspruner.pruning.output_weights import output_weights
from crosspruner.pruning.sensitivity import Evaluate, prune_by_sensitivity
from crosspruner.solver.full_float32 import full_float32
from crosspruner.sparsity import GroupLayout


@dataclass
class ProcedureResult:
    """What the procedure decided."""

    masks: dict[str, Tensor]
    """Layer name -> (U, P) bool, on the CPU."""
    layouts: dict[str, GroupLayout]
    """Layer name -> its groups, in the order that they were pruned in."""
    errors: dict[str, float] = field(default_factory=dict)
    """Layer name -> squared error of its outputs relative to their energy."""
    stopped_by: dict[str, str] = field(default_factory=dict)
    """Layer name -> the condition that stopped it, with budget "sensitivity"."""

    @property
    def orders(self) -> dict[str, Tensor]:
        """Layer name -> (G, Cin / G) input order, of reordered layers."""
        orders = {name: layout.input_order for name, layout in self.layouts.items()}
        return {name: order for name, order in orders.items() if order is not None}


@full_float32()
def prune_network(
    network: nn.Module,
    dense: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    ratio: float,
    batches: Sequence[Tensor],
    settings: LayerwiseSettings,
    budget: BudgetSettings,
    generator: torch.Generator,
    evaluate: Evaluate | None = None,
) -> ProcedureResult:
    """Prune a network in place.

    Args:
        network: the copy to prune.
        dense: the network as it was.
        plan: the dense plan.
        layouts: the layers that may be pruned.
        ratio: fraction of the plan's compute crossbars to remove, in [0, 1).
        batches: calibration images.
        settings: how each layer is pruned.
        budget: how the ratio is divided.
        generator: source of all randomness, on the CPU.
        evaluate: accuracy of a network; needed by budget "sensitivity".

    Raises:
        BudgetError: the ratio cannot be met.
        ConfigError: the budget needs `evaluate`, or does not fit the solver.
        DataError, ModelError: see `layerwise.prune_layers`.
    """
    if budget.name == "sensitivity" and evaluate is None:
        raise ConfigError(
            "budget='sensitivity' stops by the accuracy: give evaluate, a function that returns "
            "the accuracy (0 to 1) of a network on held-out images"
        )
    check_network_solver(settings, budget.name)
    with evaluation(network), evaluation(dense):
        users = users_of(plan, layouts)
        blocks, _ = budget.first_blocks(plan, layouts, ratio)
        walk = None
        # Nothing comes between: the dense network need not be run again for the walk.
        if (
            budget.name in ("uniform", "per_layer")
            and settings.reorder != "best"
            and settings.solver not in (*NETWORK_SOLVERS, CHANNEL_SOLVER)
        ):
            walk = Walk(network, dense, users, batches, settings, generator)
            walk.keep_as_they_are(n for n, layout in layouts.items() if blocks[n] == layout.blocks)
        with walk.watching() if walk else nullcontext(batches) as parts:
            weights = output_weights(dense, users, parts, generator)
        if settings.solver == CHANNEL_SOLVER and ratio > 0:
            check_channel_settings(settings.refit, users)
            gone, orders = remove_channels(network, plan, layouts, ratio, batches[0])
            walk = Walk(network, dense, users, batches, settings, generator)
            for norm in walk.norms.values():
                walk.reestimate(norm)
            return ProcedureResult(gone, _ordered(layouts, orders))
        # Else there are no predictions to look at.
        looks = bool(weights) and ratio > 0 and sum(map(len, batches)) > 1
        if settings.reorder == "best":
            order = "none"
            if looks:
                how = (blocks, batches, weights, settings, generator)
                order = best_order(dense, plan, layouts, *how)
            settings = replace(settings, reorder=order)
        masks: dict[str, Tensor] = {}
        if settings.solver in NETWORK_SOLVERS and ratio > 0:
            choose = NETWORK_SOLVERS[settings.solver]
            masks = choose(dense, plan, layouts, users, ratio, batches, generator)
            blocks = {name: layout.blocks_of(masks[name]) for name, layout in layouts.items()}
        elif budget.name == "global":
            costs = cost_curves(dense, plan, layouts, batches, weights, settings, generator)
            if looks:
                costs = measured_costs(
                    *(dense, plan, layouts, batches, costs, weights, settings, generator)
                )
            uniform, blocks = blocks, global_budget(plan, layouts, ratio, costs)
            if looks:
                blocks = search_between(
                    *(dense, plan, layouts, ratio, batches, uniform, blocks, weights, settings),
                    generator,
                )
        if budget.name == "sensitivity" and evaluate is not None:
            pruned = prune_by_sensitivity(
                *(network, dense, plan, layouts, ratio, batches, weights, settings, budget),
                *(generator, evaluate),
            )
        else:
            pruned = prune_layers(
                *(network, dense, plan, layouts, blocks, batches, weights, settings, generator),
                masks,
                walk=walk,
            )
    ordered = _ordered(layouts, pruned.orders)
    return ProcedureResult(pruned.masks, ordered, pruned.errors, pruned.stopped_by)


def _ordered(
    layouts: Mapping[str, GroupLayout], orders: Mapping[str, Tensor]
) -> dict[str, GroupLayout]:
    return {
        name: replace(layout, input_order=orders.get(name, layout.input_order))
        for name, layout in layouts.items()
    }
