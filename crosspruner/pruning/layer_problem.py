"""From a layer's moments and weights to the problem that the mask solvers read."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from crosspruner.hardware.packing import output_table
from crosspruner.pruning.moments import Moments
from crosspruner.pruning.reconstruct import damped, right_side
from crosspruner.solver import LayerProblem
from crosspruner.solver.refit import RefitProblem
from crosspruner.sparsity import GroupLayout

# Temporaries of one pass over the outputs hold at most this many entries (float64: 128 MB).
_CHUNK_ENTRIES = 2**24


@torch.no_grad()
def layer_problem(
    moments: Moments,
    weight: Tensor,
    scale: Tensor | None = None,
    damping: float = 0.01,
    refit: bool = True,
) -> LayerProblem:
    """One problem per unit of the layer: per output group, or per output at column grain.

    Args:
        moments: of the layer, in the layout whose masks are asked for.
        weight: (Cout, fan_in, ...) before pruning.
        scale: (Cout,) what an error of each output weighs, as a factor on the output; None = 1.
        damping: of the refit, see `reconstruct.refit`.
        refit: also give the form that solvers for refitted weights read. Layers of several bands
            (convolution groups, or moments cut into runs) have none.

    Returns:
        The problem; its rows are the rows of a mask, its columns the input groups.
    """
    layout = moments.layout
    if scale is None:
        scale = torch.ones(layout.out_channels)
    scale = scale.to(moments.cross)
    unit = layout.unit_of_output.to(scale.device)
    own_scale = scale.view(layout.conv_groups, 1, -1).repeat_interleave(moments.runs, 0)
    placed = moments.place(weight) * own_scale
    make_gram = partial(_gram, moments, placed, unit)
    gram: Tensor | Callable[[], Tensor] = make_gram
    if moments.runs == 1:
        aligned = (placed * moments.cross * own_scale).unflatten(1, (-1, moments.width))
        per_output = aligned.sum(2).transpose(1, 2).flatten(0, 1)  # (Cout, P)
        linear = per_output.new_zeros(layout.units, layout.input_groups)
        linear.index_add_(0, unit, per_output)
    else:
        gram = whole = make_gram()
        linear = whole.sum(2)
    energy = moments.energy.flatten() * scale.square()
    own = weight.detach().double()
    foreseen = refit and len(moments.cross) == 1
    return LayerProblem(
        gram,
        linear,
        torch.zeros_like(linear[:, 0]).index_add_(0, unit, energy),
        layout.sum_by_group(own.square()).to(scale.device),
        refit=_refit_problem(moments, weight, scale, damping) if foreseen else None,
    )


def _gram(moments: Moments, placed: Tensor, unit: Tensor) -> Tensor:
    """(U, P, P) sum over the outputs of a unit of w_a' M_ab w_b; zero between runs."""
    if moments.patches is not None:
        return _gram_of_patches(moments.patches, placed[0], unit, moments.layout)
    layout, width, runs = moments.layout, moments.width, moments.runs
    bands, rows, outputs = placed.shape
    groups = rows // width
    second = moments.second.view(bands, rows, groups, width).transpose(1, 2)  # (B, p, d, w)
    gram = placed.new_zeros(layout.units, runs * groups, runs * groups)
    by_run = gram.view(layout.units, runs, groups, runs, groups)
    chunk = max(1, _CHUNK_ENTRIES // max(1, bands * rows * groups))
    run = torch.arange(runs, device=placed.device)
    units = unit.view(layout.conv_groups, outputs)
    for start in range(0, outputs, chunk):
        part = placed[:, :, start : start + chunk]
        product = second @ part.unflatten(1, (groups, width))  # (B, p, d, o): M w_b for each b
        product = (product * part.unsqueeze(1)).unflatten(2, (groups, width)).sum(3)
        product = product.unflatten(0, (layout.conv_groups, runs)).permute(1, 0, 4, 2, 3)
        which = units[:, start : start + chunk].flatten()
        diagonal = by_run[:, run, :, run]  # (R, U, p, p)
        diagonal.index_add_(1, which, product.flatten(1, 2))
        by_run[:, run, :, run] = diagonal
    return gram[:, : layout.input_groups, : layout.input_groups]


def _gram_of_patches(patches: Tensor, placed: Tensor, unit: Tensor, layout: GroupLayout) -> Tensor:
    """The same from what each group adds to the outputs at the patches (n, d)."""
    groups, outputs = layout.input_groups, placed.shape[1]
    inputs = patches.unflatten(1, (groups, -1)).transpose(0, 1)  # (P, n, w)
    gram = placed.new_zeros(layout.units, groups, groups)
    chunk = max(1, _CHUNK_ENTRIES // max(1, groups * (len(patches) + groups)))
    for start in range(0, outputs, chunk):
        part = placed[:, start : start + chunk].unflatten(0, (groups, -1))
        added = (inputs @ part).permute(2, 0, 1)  # (o, P, n)
        gram.index_add_(0, unit[start : start + chunk], added @ added.mT / len(patches))
    return gram


def _refit_problem(moments: Moments, weight: Tensor, scale: Tensor, damping: float) -> RefitProblem:
    layout, old = moments.layout, moments.place(weight)
    target, pull = right_side(moments, old, damping)
    table = torch.arange(layout.out_channels).unsqueeze(1)
    if layout.grain == "crossbar":
        order = torch.arange(layout.out_channels).unsqueeze(0)
        table = output_table(
            order if layout.output_order is None else layout.output_order,
            *(layout.kout, 1, layout.sections),
        )
    table = table.to(old.device)
    columns = (target[0] * scale).T[table.clamp(min=0)] * (table >= 0).unsqueeze(2)
    constant = (moments.energy[0] + pull[0, 0] * old[0].square().sum(0)) * scale.square()
    constant = (constant[table.clamp(min=0)] * (table >= 0)).sum(1)
    system = None if moments.patches is not None else damped(moments, pull)[0]
    return RefitProblem(
        *(system, columns.mT.contiguous(), constant, layout.input_groups),
        patches=moments.patches,
        ridge=float(pull),
    )
