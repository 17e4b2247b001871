"""Layers whose module is never called: a function uses their weight (windows, attention)."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from crosspruner.hardware.calls import Call, WeightCalls


class FunctionCalls(WeightCalls):
    """Looks in where a function computes with the weight of one of some layers.

    Calls from within the layer's own module are left to its hooks.

    Args:
        modules: the layers, as `attention.layer_module` gives them.
        before: called with the layer and the call before it is computed; it may change the weight
            in place.
        after: called with the layer, the call and its output, as it would be with the layer's own
            bias; what it returns, if anything, takes the place of the output.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        before: Callable[[nn.Module, Call], None] | None = None,
        after: Callable[[nn.Module, Call, Tensor], Tensor | None] | None = None,
    ) -> None:
        super().__init__(self._seen)
        self.layers = list(modules)
        self.owners = {id(module._parameters.get("weight")): module for module in self.layers}
        self.before, self.after = before, after

    def watching(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Looks in, inside."""
        return super().watching(dict.fromkeys(self.layers, ""))

    def _seen(self, call: Call, running: nn.Module | None) -> Tensor:
        module = self.owners.get(id(call.weight))
        if module is None or running is module:
            return call.compute()
        if self.before is not None:
            self.before(module, call)
        y = call.compute()
        if self.after is None:
            return y
        # A bare parameter's Linear has no bias: what it put out is the product alone.
        foreign = call.bias if module._parameters.get("bias") is None else None
        seen = self.after(module, call, y if foreign is None else y - foreign)
        if seen is None:
            return y
        return seen if foreign is None else seen + foreign
