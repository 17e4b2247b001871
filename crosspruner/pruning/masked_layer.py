"""One layer under a mask, without touching its keys, its shape or its forward pass.

The weight parameter itself holds the pruned weight, exact zeros included, so autograd returns
dLoss/dW_eff for kept and pruned groups alike and nothing has to be undone before saving. What a
pruned group held when it was removed waits in `dormant`, and is put back if the group is revived.
"""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from crosspruner.hardware.layer_modules import operation_of, stored_as_matrix
from crosspruner.hardware.matrix import from_matrix, to_matrix
from crosspruner.hardware.weight_form import centred, form_of, stored_weight
from crosspruner.sparsity import GroupLayout


class MaskedLayer:
    """A layer's weight, its mask and what the mask holds back.

    Args:
        module: the layer; only its weight parameter is read and written, in place (the direction v
            of a weight-normed layer).
        layout: its groups.
    """

    def __init__(self, module: nn.Module, layout: GroupLayout) -> None:
        self.module = module
        self.layout = layout
        self.mask = torch.ones(layout.shape, dtype=torch.bool, device=self.weight.device)
        self.dormant = torch.zeros_like(self.weight, requires_grad=False)
        self._operation = operation_of(module)
        self._stored_as_matrix = stored_as_matrix(module)
        self._groups = layout.conv_groups
        self._standardised = form_of(module) == "standardised"

    @property
    def weight(self) -> Tensor:
        """The parameter."""
        return stored_weight(self.module)

    # Made once for each mask: on a GPU a count waits for all that is still to be computed.

    @cached_property
    def kept(self) -> Tensor:
        """Bool tensor that broadcasts against the weight: True where it is kept."""
        return self.spread(self.mask)

    @cached_property
    def gone(self) -> Tensor:
        """Bool tensor that broadcasts against the weight: True where it is pruned."""
        return ~self.kept

    @cached_property
    def crossbars(self) -> int:
        """Compute crossbars that the mask leaves after packing."""
        return self.layout.crossbars(self.mask)

    @cached_property
    def _whole(self) -> bool:
        return bool(self.mask.all())

    def spread(self, values: Tensor) -> Tensor:
        """One value per group as a tensor that broadcasts against the weight.

        Args:
            values: (U, P), any dtype.
        """
        matrix = self._matrix(self.weight)
        spread = self.layout.expand_like(values, matrix)
        if self._stored_as_matrix:
            return spread
        shape = tuple(self.weight.shape)
        return from_matrix(self._operation, spread.expand_as(matrix), shape, self._groups)

    def sum_by_group(self, values: Tensor) -> Tensor:
        """(U, P) sums over each group of a tensor of the weight's shape."""
        return self.layout.sum_by_group(self._matrix(values))

    def _matrix(self, values: Tensor) -> Tensor:
        """A tensor of the weight's shape as (Cout, fan_in, ...)."""
        if self._stored_as_matrix:
            return values
        return to_matrix(self._operation, values, self._groups)

    @torch.no_grad()
    def latent(self) -> Tensor:
        """The weight with the pruned groups' waiting values in place, (Cout, fan_in, ...)."""
        return self._matrix(self._latent())

    def _latent(self) -> Tensor:
        return self.weight.detach() + self.dormant

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> None:
        """Move newly pruned groups into `dormant` and revived ones back into the weight."""
        latent = self._latent()
        self._take_mask(mask)
        self.weight.copy_(torch.where(self.kept, latent, 0.0))
        self.dormant = torch.where(self.kept, torch.zeros_like(latent), latent)
        self._centre()

    def reorder(self, order: Tensor) -> None:
        """Cut the input FMs into groups in another order; the mask is read in it from now on."""
        self.layout = replace(self.layout, input_order=order)
        self._take_mask(self.mask)

    def _take_mask(self, mask: Tensor) -> None:
        self.mask = mask.to(self.weight.device)
        for made in ("kept", "gone", "crossbars", "_whole"):
            self.__dict__.pop(made, None)

    @torch.no_grad()
    def enforce(self) -> None:
        """Make pruned weights exactly zero again, whatever momentum or weight decay did to them."""
        self.weight.masked_fill_(self.gone, 0.0)
        self._centre()

    def _centre(self) -> None:
        """Kept weights of mean zero: zeros of a standardised layer stay zeros when it computes."""
        if self._standardised and not self._whole:
            self.weight.copy_(centred(self.weight, self.kept))

    @torch.no_grad()
    def mask_gradient(self) -> None:
        """Zero the pruned weights' gradient, so that no momentum or norm counts it."""
        if self.weight.grad is not None:
            self.weight.grad.masked_fill_(self.gone, 0.0)

    @torch.no_grad()
    def split_gradient(self) -> Tensor:
        """Zero the pruned weights' gradient, returning dLoss/dbeta of every group first.

        Returns:
            (U, P) sum over each group of weight * gradient, waiting values included; zeros where
            the weight got no gradient.
        """
        if self.weight.grad is None:
            return torch.zeros(self.layout.shape, device=self.weight.device)
        slope = self.sum_by_group(self._latent().float() * self.weight.grad.float())
        self.mask_gradient()
        return slope

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: the mask and the waiting values."""
        return {"mask": self.mask.cpu(), "dormant": self.dormant.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`; the weight itself comes back with the model's own state."""
        self._take_mask(state["mask"])
        self.dormant = state["dormant"].to(self.weight.device)
