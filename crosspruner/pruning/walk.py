"""The order in which a network's parts run, and runs up to one of them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crosspruner.errors import ModelError
from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.calls import Call
from crosspruner.pruning.function_calls import FunctionCalls

Notice = Callable[[nn.Module, Tensor, Tensor], None]
"""(module, input, output) of one call of a watched module."""

Visit = Callable[["Stop", nn.Module, Tensor], None]
"""(stop, module, its input or output) of one call."""


@dataclass
class Stop:
    """One place of the walk: a layer, or a batch norm."""

    name: str
    """Of the layer that the plan counts, or of the batch norm."""
    modules: list[nn.Module]
    """One module, or all those that share the layer's weight."""
    calls: int = 0
    """How often they run in one forward pass."""
    norm: str | None = None
    """Batch norm that reads this layer's output as it is."""
    entries: int = 0
    """Numbers in its input or its output, whichever are more, per image."""
    output_entries: int = 0
    """Numbers in its output, per image."""
    by_function: bool = False
    """Whether a function uses the layer's weight, and its module is never called."""

    @property
    def is_norm(self) -> bool:
        """Whether this is a batch norm with statistics of its own."""
        return isinstance(self.modules[0], _BatchNorm)


class _Reached(Exception):
    """The last call asked for is done: the rest of the forward pass is not needed."""


def stops(network: nn.Module, images: Tensor, layers: Mapping[str, Iterable[str]]) -> list[Stop]:
    """The layers and batch norms of a network in the order of their first run.

    Args:
        network: in evaluation mode.
        images: one batch.
        layers: name of each layer -> names of all modules that use its weight.

    Returns:
        Those that run.

    Raises:
        ModelError: the network does not run on the images.
    """
    modules = dict(network.named_modules())
    known = {
        name: Stop(name, [layer_module(network, n) for n in names])
        for name, names in layers.items()
    }
    known |= {name: Stop(name, [m]) for name, m in modules.items() if isinstance(m, _BatchNorm)}
    found: dict[str, Stop] = {}
    previous: list[tuple[Stop, Any]] = []

    def note(stop: Stop, value: Any, output: Any) -> None:
        found.setdefault(stop.name, stop).calls += 1
        stop.output_entries = max(stop.output_entries, output.numel() // len(images))
        stop.entries = max(stop.entries, stop.output_entries, value.numel() // len(images))
        if stop.is_norm and previous and previous[-1][1] is value:
            previous[-1][0].norm = stop.name
        previous[:] = [(stop, output)]

    hooks = [
        module.register_forward_hook(
            lambda _, args, kwargs, output, at=stop: note(at, _first(args, kwargs), output),
            with_kwargs=True,
        )
        for stop in known.values()
        for module in stop.modules
    ]

    def note_function(module: nn.Module, call: Call, output: Tensor) -> None:
        stop = owners[module]
        stop.by_function = True
        note(stop, call.x, output)

    owners = {module: stop for stop in known.values() for module in stop.modules}
    try:
        with torch.no_grad(), FunctionCalls(owners, after=note_function).watching():
            forward(network, images)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def forward(network: nn.Module, images: Tensor) -> Any:
    """What a network puts out.

    Raises:
        ModelError: it does not run on the images.
    """
    try:
        return network(images)
    except Exception as error:
        raise ModelError(
            f"{type(network).__name__} cannot run on calibration images of shape "
            f"{tuple(images.shape)}: {type(error).__name__}: {error}"
        ) from error


@torch.no_grad()
def run_to(network: nn.Module, images: Tensor, stop: Stop, notice: Notice) -> None:
    """Run a network until the last call of a stop.

    Args:
        network: in evaluation mode; `stop` belongs to it.
        images: one batch.
        stop: the modules to watch.
        notice: called with the module, the input and the output of each of their calls.
    """
    calls = 0

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        nonlocal calls
        notice(module, _first(args, kwargs), output)
        calls += 1
        if calls == stop.calls:
            raise _Reached

    def after(module: nn.Module, call: Call, output: Tensor) -> None:
        hook(module, (call.x,), {}, output)

    hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in stop.modules]
    functions = FunctionCalls(stop.modules, after=after).watching()
    try:
        with functions if stop.by_function else nullcontext():
            network(images)
    except _Reached:
        pass
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def run_through(
    network: nn.Module,
    images: Tensor,
    places: Iterable[Stop],
    before: Visit | None = None,
    after: Visit | None = None,
) -> None:
    """Run a network once and look in at every stop on the way.

    Args:
        network: in evaluation mode; the stops belong to it.
        images: one batch.
        places: where to look.
        before: called with the input of each stop before it runs; it may change the module, which
            then runs as changed.
        after: called with the output of each stop.
    """
    hooks = []
    owners: dict[nn.Module, Stop] = {}
    for stop in places:
        if stop.by_function:
            owners |= dict.fromkeys(stop.modules, stop)
        for module in stop.modules:
            if before is not None:
                hooks.append(
                    module.register_forward_pre_hook(
                        lambda m, args, kwargs, at=stop: before(at, m, _first(args, kwargs)),
                        with_kwargs=True,
                    )
                )
            if after is not None:
                hooks.append(
                    module.register_forward_hook(lambda m, _, out, at=stop: after(at, m, out))
                )
    functions = FunctionCalls(
        owners,
        None if before is None else lambda m, call: before(owners[m], m, call.x),
        None if after is None else lambda m, _, out: after(owners[m], m, out),
    )
    try:
        with functions.watching() if owners else nullcontext():
            network(images)
    finally:
        for handle in hooks:
            handle.remove()


def _first(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))
