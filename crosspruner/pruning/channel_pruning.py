"""Whole channels removed by Torch-Pruning's dependency graph, counted on the same crossbars.

A channel goes with everything that reads or writes it: rows and columns of all layers coupled to
it, its batch norms, its residual partners. Nothing is cut out of tensors: dead channels are zero in
every parameter, so that the network computes what the smaller one would, and stay so while it
trains on (a batch norm with factor and shift 0 passes no gradient). On crossbars the columns of
dead outputs are pruned, and dead inputs are gathered in groups of their own, which are pruned: the
layer takes the crossbars that the smaller layer would, with the same Kin and Kout.

Source: DepGraph (Fang et al., CVPR 2023) in the package torch-pruning, with its group magnitude
importance; the crossbar target in place of one on parameters is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from crosspruner.errors import BudgetError, ConfigError
from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.plan import Plan
from crosspruner.sparsity import GroupLayout


@dataclass
class Channels:
    """What is dead of each module."""

    outputs: dict[nn.Module, set[int]] = field(default_factory=dict)
    inputs: dict[nn.Module, set[int]] = field(default_factory=dict)


@torch.no_grad()
def remove_channels(
    network: nn.Module,
    plan: Plan,
    layouts: Mapping[str, GroupLayout],
    ratio: float,
    images: Tensor,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Zero the least important channels until the crossbars asked for are free.

    Args:
        network: changed in place.
        plan: the dense plan.
        layouts: the prunable layers, at column grain; only their crossbars count as freed.
        ratio: fraction of the plan's compute crossbars to remove, in [0, 1).
        images: some, (N, ...), to trace the network with.

    Returns:
        Masks, layer name -> (U, P) bool, whose rows of dead outputs are empty; and input orders,
        layer name -> (1, fan_in). The crossbars freed are the ones asked for, or some more: the
        least that one further channel frees.

    Raises:
        BudgetError: not even one channel of each kind left would do.
        ConfigError: torch-pruning is missing, the grain is crossbar, or a layer has groups.
    """
    grouped = [name for name, layout in layouts.items() if layout.conv_groups > 1]
    if grouped or any(layout.grain != "column" for layout in layouts.values()):
        raise ConfigError(
            "solver=torch_pruning removes whole channels, which empties columns: type grain=column"
            + (f" and exclude the grouped layers {', '.join(grouped)}" if grouped else "")
        )
    ranking = _Ranking(network, images)
    modules = {name: layer_module(network, name) for name in layouts}
    wanted = ratio * plan.compute_crossbars

    def masks_of(channels: Channels) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        found = {n: _mask(modules[n], layout, channels) for n, layout in layouts.items()}
        return {n: m for n, (m, _) in found.items()}, {n: o for n, (_, o) in found.items()}

    def freed(count: int) -> int:
        masks, _ = masks_of(ranking.first(count))
        return sum(
            (layout.blocks - layout.blocks_of(masks[name])) * layout.crossbars_per_block
            for name, layout in layouts.items()
        )

    low, high = 0, ranking.channels
    if freed(high) < wanted:
        raise BudgetError(
            f"ratio={ratio}: removing all but one channel of each kind frees {freed(high)} of "
            f"{plan.compute_crossbars} compute crossbars; the largest feasible ratio is "
            f"{freed(high) / plan.compute_crossbars:.4f}"
        )
    while low < high:  # removing more never frees less
        middle = (low + high) // 2
        low, high = (low, middle) if freed(middle) >= wanted else (middle + 1, high)
    channels = ranking.first(low)
    _zero(channels)
    return masks_of(channels)


class _Ranking:
    """All channels that may go, the least important first; one of each kind always stays."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.tools = _torch_pruning()
        example = images[:1]
        with torch.enable_grad():  # the graph is traced along gradients
            self.graph = self.tools.DependencyGraph().build_dependency(network, example)
        importance = self.tools.importance.GroupMagnitudeImportance(p=2)
        last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
        roots: list[tuple[nn.Module, Callable]] = []
        scores: list[Tensor] = []
        for group in self.graph.get_all_groups(
            ignored_layers=last, root_module_types=[nn.Conv2d, nn.Linear]
        ):
            outputs = {dep.target.module for dep, _ in group if self._is_output(dep)}
            if last and last[0] in outputs:
                continue  # coupled with the classes
            worth = importance(group).double().cpu()
            spared = worth.argmax()
            worth[spared] = torch.inf
            roots.append((group[0].dep.target.module, group[0].dep.handler))
            scores.append(worth)
        self.roots = roots
        self.sizes = [len(worth) for worth in scores]
        flat = torch.cat(scores) if scores else torch.zeros(0)
        self.order = torch.argsort(flat, stable=True)
        self.channels = int(flat.isfinite().sum())

    def first(self, count: int) -> Channels:
        """The dead channels of every module once the `count` least important ones went."""
        gone = torch.zeros(sum(self.sizes), dtype=torch.bool)
        gone[self.order[:count]] = True
        dead = Channels()
        for (module, handler), own in zip(self.roots, gone.split(self.sizes), strict=True):
            indices = own.nonzero().flatten().tolist()
            if not indices:
                continue
            for dep, where in self.graph.get_pruning_group(module, handler, indices):
                side = dead.outputs if self._is_output(dep) else dead.inputs
                side.setdefault(dep.target.module, set()).update(where)
        return dead

    def _is_output(self, dep: Any) -> bool:
        return bool(self.graph.is_out_channel_pruning_fn(dep.handler))


def _mask(module: nn.Module, layout: GroupLayout, channels: Channels) -> tuple[Tensor, Tensor]:
    """(U, P) mask of a layer, and the (1, fan_in) order that puts its dead inputs last."""
    dead_in = torch.zeros(layout.fan_in, dtype=torch.bool)
    dead_in[sorted(channels.inputs.get(module, ()))] = True
    alive = torch.ones(layout.out_channels, dtype=torch.bool)
    alive[sorted(channels.outputs.get(module, ()))] = False
    groups = -(-int((~dead_in).sum()) // layout.kin)
    mask = alive.unsqueeze(1) & (torch.arange(layout.input_groups) < groups)
    return mask, torch.argsort(dead_in.int(), stable=True).unsqueeze(0)


def _zero(channels: Channels) -> None:
    for module, where in channels.outputs.items():
        index = sorted(where)
        for name in ("weight", "bias", "running_mean"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and len(tensor):
                tensor[index] = 0.0
    for module, where in channels.inputs.items():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1:  # a batch norm has outputs alone
            weight[:, sorted(where)] = 0.0


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError(
            "solver=torch_pruning needs the package torch-pruning: pip install "
            "'crosspruner[channels]'"
        ) from error
    return torch_pruning


def check_channel_settings(refit: bool, users: Mapping[str, Sequence[str]]) -> None:
    """Refuse what whole channels do not go with.

    Raises:
        ConfigError: weights shall be refitted (a refit would fill dead channels again), or a layer
            is used by several modules.
    """
    if refit:
        raise ConfigError(
            "solver=torch_pruning leaves weights as they are: type procedure.refit=false"
        )
    shared = [name for name, own in users.items() if len(own) > 1]
    if shared:
        raise ConfigError(
            f"solver=torch_pruning: layers {', '.join(shared)} are used more than once: exclude "
            "them"
        )
