"""The gradient of a penalty on the norms of groups: what pulls whole groups to zero.

    penalty = strength * sum over the groups of sqrt(weights of the group) * |W_g|

Source: group lasso (Yuan and Lin 2006), on the filters and channels of a network Wen et al. 2016;
on crossbar groups here.
"""

import torch
from torch import Tensor

from crosspruner.pruning.masked_layer import MaskedLayer


@torch.no_grad()
def penalty_gradient(layer: MaskedLayer, penalised: Tensor, strength: float) -> Tensor:
    """d penalty / dW, in the shape of the weight.

    Args:
        layer: whose groups are penalised.
        penalised: (U, P) bool, the groups that are; the others get zeros.
        strength: >= 0.

    Returns:
        strength * sqrt(n_g) * W / |W_g| in group g; zero where |W_g| is (a subgradient).
    """
    weight, layout = layer.weight.detach(), layer.layout
    norms = layout.sum_by_group(weight.float().square()).sqrt()
    sizes = layout.sum_by_group(torch.ones_like(weight, dtype=torch.float32))
    tiny = torch.finfo(norms.dtype).tiny
    factor = strength * sizes.sqrt() / norms.clamp(min=tiny)
    factor = torch.where(penalised.to(norms.device) & (norms > tiny), factor, 0.0)
    return (layout.expand_like(factor, weight) * weight).to(weight.dtype)
