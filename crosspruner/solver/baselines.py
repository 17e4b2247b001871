"""Baselines that rank the groups of each problem once and keep the best.

All share one signature, `(problem, keep, generator) -> mask`, see `registry`.
"""

import torch
from torch import Tensor

from crosspruner.errors import SolverError
from crosspruner.solver.problem import LayerProblem
from crosspruner.solver.rpp import rpp


def random_groups(
    problem: LayerProblem, keep: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Keep groups drawn evenly: the bar that every other solver must pass.

    Returns:
        (B, P) bool, exactly `keep` True per row.
    """
    draw = torch.rand(
        problem.linear.shape, generator=generator, dtype=torch.float64, device=problem.linear.device
    )
    return rpp(draw, keep)


def magnitude(
    problem: LayerProblem, keep: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Keep the groups of largest weight norm; needs no data. Ties keep the lower index.

    Returns:
        (B, P) bool, exactly `keep` True per row.

    Raises:
        SolverError: the problem has no `norms`.

    Source: Han et al., NeurIPS 2015, on blocks instead of single weights.
    """
    if problem.norms is None:
        raise SolverError("solver magnitude needs the groups' weight norms; give norms (B, P)")
    return rpp(problem.norms.to(torch.float64), keep)


def taylor(problem: LayerProblem, keep: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Keep the groups whose removal alone changes the loss most.

    With `saliency` the loss is the task's and the change first order, |sum of w * dloss/dw|;
    without, the loss is the layer's, and its second-order expansion is exact:
    L(1 - e_a) - L(1) = G_aa - 2 (G 1 - h)_a.

    Returns:
        (B, P) bool, exactly `keep` True per row.

    Source: Molchanov et al., ICLR 2017 and CVPR 2019.
    """
    if problem.saliency is not None:
        return rpp(problem.saliency.to(torch.float64).abs(), keep)
    gram = problem.gram.to(torch.float64)
    rise = gram.diagonal(dim1=1, dim2=2) - 2 * (gram.sum(-1) - problem.linear)
    return rpp(rise, keep)
