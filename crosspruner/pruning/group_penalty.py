"""The proximal step of a penalty on the norms of groups: what pulls whole groups to zero.

    penalty = sum over the groups of sqrt(weights of the group) * |W_g|

After a step of size a on it, |W_g| is smaller by a * sqrt(n_g), and exactly zero where it was not
larger: the root mean square of the group's weights has lost a.

Source: group lasso (Yuan and Lin 2006), on the filters and channels of a network Wen et al. 2016;
on crossbar groups here. The proximal step in place of a subgradient is our reading: it does not
depend on learning rate and momentum.
"""

import torch
from torch import Tensor

from crosspruner.pruning.masked_layer import MaskedLayer


@torch.no_grad()
def shrink(layer: MaskedLayer, penalised: Tensor, amount: float) -> None:
    """Take a proximal step, in place.

    Args:
        layer: whose groups are penalised.
        penalised: (U, P) bool, the groups that are; the others stay as they are.
        amount: what the root mean square of a group's weights loses, >= 0.
    """
    matrix, layout = layer.matrix(layer.weight.float()), layer.layout
    norms = layout.sum_by_group(matrix.square()).sqrt()
    sizes = layout.sum_by_group(torch.ones_like(matrix))
    tiny = torch.finfo(norms.dtype).tiny
    factor = (1 - amount * sizes.sqrt() / norms.clamp(min=tiny)).clamp(min=0)
    factor = torch.where(penalised.to(norms.device), factor, 1.0)
    layer.weight.mul_(layer.spread(factor).to(layer.weight.dtype))
