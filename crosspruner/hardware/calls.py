"""Watching a network's convolutions and products, whoever calls them.

A layer may run as a module, or a function may use its weight: shifted windows, attention. Both come
down to a function of torch with a weight, which is seen here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from crosspruner.hardware.attention import attention_by_projections
from crosspruner.hardware.layer_modules import operation_of
from crosspruner.hardware.matrix import OPERATIONS, Unrolled, unroll


@dataclass(frozen=True)
class Call:
    """One convolution or product."""

    function: Any
    operation: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    options: dict[str, Any] = field(default_factory=dict)
    part: int | None = None
    """Which third of the outputs is wanted (attention whose key is not its query); None = all."""
    batch_dim: int = 0
    """Axis of the images, in `x` and in the output; attention has its tokens first."""

    def compute(self) -> Tensor:
        """What torch computes."""
        return self.wanted(self.function(self.x, self.weight, self.bias, **self.options))

    def wanted(self, y: Tensor) -> Tensor:
        """The part of the whole output that the caller wants."""
        return y if self.part is None else y.chunk(3, -1)[self.part]

    def unrolled(self) -> Unrolled:
        """As a two-dimensional convolution."""
        return unroll(self.operation, self.x, self.weight, self.options)


OnCall = Callable[[Call, nn.Module | None], Tensor]
"""(call, the watched module that is running) -> output."""


class WeightCalls(TorchFunctionMode):
    """Hands every convolution and product to a function.

    Args:
        on_call: what computes it instead.
    """

    def __init__(self, on_call: OnCall) -> None:
        super().__init__()
        self.on_call = on_call
        self.running: list[nn.Module] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OPERATIONS:
            return self._handed(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            return attention_by_projections(self._projection, args, kwargs)
        return self.other(func, args, kwargs)

    def other(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Any other function."""
        return func(*args, **kwargs)

    def _handed(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        operation, options = OPERATIONS[func]
        given = dict(zip(("input", "weight", "bias", *options), args, strict=False)) | kwargs
        call = Call(
            *(func, operation, given.pop("input"), given.pop("weight"), given.pop("bias", None)),
            given,
        )
        return self.on_call(call, self.running[-1] if self.running else None)

    def _projection(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, part: int | None
    ) -> Tensor:
        call = Call(F.linear, "linear", x, weight, bias, part=part, batch_dim=x.dim() - 2)
        return self.on_call(call, None)

    def _done(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.running and self.running[-1] is module:
            self.running.pop()

    @contextmanager
    def watching(self, modules: Mapping[nn.Module, str]) -> Iterator[None]:
        """Knows, inside, which of these modules is running."""
        hooks = []
        for module in modules:
            hooks += [
                module.register_forward_pre_hook(lambda m, _: self.running.append(m)),
                module.register_forward_hook(self._done, always_call=True),
            ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()


def owner_of(
    call: Call,
    running: nn.Module | None,
    modules: Mapping[nn.Module, str],
    owners: Mapping[int, str],
) -> str | None:
    """The layer that a call belongs to.

    Args:
        call: the call.
        running: the watched module under way.
        modules: module -> name of its layer.
        owners: id of a parameter -> name of its layer, for weights that functions use.

    Returns:
        The running module's, where it does its own operation with its own weight (or with one that
        it computed), else that of the parameter; None: neither.
    """
    owner = owners.get(id(call.weight))
    if running is None or running not in modules or call.operation != operation_of(running):
        return owner
    own = running._parameters.get("weight")
    return owner if owner is not None and own is not call.weight else modules[running]
