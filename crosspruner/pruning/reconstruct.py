"""The weights that survive a mask, refitted in closed form to the dense network's outputs.

For an output that keeps the rows S:   (M_SS + r I) w_S = C_S + r w_old,S

with M the second moment of the pruned network's inputs, C their cross moment with the dense outputs
and r the damping. Outputs with equal supports share one Cholesky factor; different supports of
equal size are factored in one batch. Where fewer patches than rows are known, the same system is
solved among the patches (`FewPatches`).

Source: least-squares reconstruction as in optimal brain surgeon (Hassibi and Stork 1993) and
channel pruning (He et al., ICCV 2017); pulling toward the old weights instead of toward zero is
ours.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from crosspruner.pruning.moments import Moments
from crosspruner.solver.refit import RefitProblem

# One batch of factors holds at most this many entries (float64: 256 MB).
_CHUNK_ENTRIES = 2**25


@torch.no_grad()
def refit(
    moments: Moments,
    weight: Tensor,
    mask: Tensor,
    damping: float = 0.01,
    known: RefitProblem | None = None,
) -> Tensor:
    """Refit the surviving weights of a layer.

    Args:
        moments: of the layer; centred where constant errors are taken up elsewhere.
        weight: (Cout, fan_in, ...) the weights before pruning.
        mask: (U, P) bool of the layout of `moments`.
        damping: ridge as a share of the mean diagonal of the moment, > 0. It keeps the system
            regular with dead inputs or fewer samples than inputs: what the data say nothing about
            stays at the old weight.
        known: a problem of these moments and this damping (`layer_problem`): what it has made of
            them is not made again.

    Returns:
        A new weight of the same shape and dtype, exactly zero where the mask is False.
    """
    layout, old = moments.layout, moments.place(weight)
    target, pull = right_side(moments, old, damping)
    by_output = mask.to(old.device)[layout.unit_of_output.to(old.device)]
    support, band, place = _supports(by_output, moments)
    new = torch.zeros_like(old)
    shared = torch.bincount(place[0], minlength=len(support))
    # The outputs of each support, one after the other.
    outputs = torch.argsort(place[0], stable=True)
    first = shared.cumsum(0) - shared
    patches, whole = moments.patches, None
    system = damped(moments, pull) if known is None and patches is None else None
    if len(target) == 1:
        columns, constant = target[0].T.unsqueeze(2), moments.energy[0]
        if known is None:
            own, groups = None if system is None else system[0], support.shape[1]
            whole = RefitProblem(own, columns, constant, groups, patches, float(pull))
        else:
            whole = replace(known, target=columns, constant=constant).sharing(known)
    for copies in shared.unique().tolist():
        alike = (shared == copies).nonzero().squeeze(1)
        which = first[alike].unsqueeze(1) + torch.arange(copies, device=old.device)
        column = place[1][outputs[which]]
        if whole is None:
            assert system is not None  # patches are those of a single band
            _refit_bands(system, target, new, support[alike], band[alike], column)
            continue
        solution, _ = whole.merged(column).solve(support[alike])
        new[0, :, column.flatten()] = solution.transpose(0, 1).flatten(1)
    refitted = moments.unplace(new, weight)
    return refitted * layout.expand_like(mask, weight).to(weight.device)


def _refit_bands(
    system: Tensor, target: Tensor, new: Tensor, support: Tensor, band: Tensor, column: Tensor
) -> None:
    """Write into `new` (B, d, o) the weights of equally many outputs (s, c) for each support.

    Args:
        system: (B, d, d) of each band; target: (B, d, o).
        support: (s, groups of a run) bool, of the bands (s,).
        column: (s, c) the outputs of each support among those of its band.
    """
    width = system.shape[1] // support.shape[1]
    within = torch.arange(width, device=system.device)
    kept = support.sum(1)
    for size in kept[kept > 0].unique().tolist():
        entries = 3 * (size * width) ** 2
        alike = (kept == size).nonzero().squeeze(1)
        for part in alike.split(max(1, _CHUNK_ENTRIES // entries)):
            groups = support[part].nonzero()[:, 1].view(len(part), size)
            rows = (groups.unsqueeze(2) * width + within).flatten(1)
            own, which = band[part].view(-1, 1, 1), column[part].unsqueeze(1)
            factor = torch.linalg.cholesky(system[own, rows.unsqueeze(2), rows.unsqueeze(1)])
            solution = torch.cholesky_solve(target[own, rows.unsqueeze(2), which], factor)
            new[own, rows.unsqueeze(2), which] = solution


@torch.no_grad()
def reconstruction_error(moments: Moments, weight: Tensor) -> Tensor:
    """E (y - w' x~)^2 of every output with the weights as they are (without what runs share).

    Args:
        moments: of the layer.
        weight: (Cout, fan_in, ...).

    Returns:
        (Cout,) float64, >= 0.
    """
    placed = moments.place(weight)
    error = moments.output_energy(placed) - 2 * (moments.cross * placed).sum(1)
    error = error.view(-1, moments.runs, error.shape[1]).sum(1)
    return (error + moments.energy).flatten().clamp(min=0)


def mean_output(moments: Moments, weight: Tensor) -> Tensor:
    """(Cout,) mean of w' x~ for uncentred moments."""
    means = (moments.mean_in.unsqueeze(2) * moments.place(weight)).sum(1)
    return means.view(-1, moments.runs, means.shape[1]).sum(1).flatten()


def cross_moment(moments: Moments, old: Tensor) -> Tensor:
    """(B, d, Cout / G): what each band has to explain.

    One band explains the whole output. Runs that know nothing of each other each explain what they
    gave the dense weights `old`: else several would explain the same thing.
    """
    return moments.cross if moments.runs == 1 else moments.second_times(old)


def ridge(moments: Moments, damping: float) -> Tensor:
    """(B, 1, 1) what is added to the diagonal; 1 in a band whose inputs are all dead."""
    layout = moments.layout
    live = layout.fan_in * (moments.width // layout.kin) / moments.runs
    mean = moments.power.sum(1) / live
    return torch.where(mean > 0, max(damping, 1e-9) * mean, 1.0).view(-1, 1, 1)


def right_side(moments: Moments, old: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """What the refitted weights solve for: (M + r I) w = C + r w_old.

    Args:
        moments: of the layer.
        old: (B, d, Cout / G) the placed weights before pruning.
        damping: share of the mean diagonal.

    Returns:
        C + r w_old (B, d, Cout / G), and r (B, 1, 1).
    """
    pull = ridge(moments, damping)
    return cross_moment(moments, old) + pull * old, pull


def damped(moments: Moments, pull: Tensor) -> Tensor:
    """(B, d, d) the second moment with the ridge (B, 1, 1) on its diagonal."""
    system = moments.second.clone()
    system.diagonal(dim1=1, dim2=2).add_(pull.squeeze(2))
    return system


def _supports(by_output: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """The different supports of all bands.

    Args:
        by_output: (Cout, P) bool.

    Returns:
        support (S, groups of a run) bool, its band (S,), and for each of the B * Cout / G columns
        its support and its number among the band's outputs (2, B * Cout / G).
    """
    layout, runs = moments.layout, moments.runs
    per_run = moments.cross.shape[1] // moments.width
    padded = F.pad(by_output, (0, runs * per_run - layout.input_groups))
    masks = padded.view(layout.conv_groups, -1, runs, per_run).transpose(1, 2)  # (G, R, O, p)
    outputs = masks.shape[2]
    bands = layout.conv_groups * runs
    band = torch.arange(bands, device=masks.device).repeat_interleave(outputs)
    keyed = torch.cat([band.unsqueeze(1), masks.reshape(-1, per_run).long()], 1)
    distinct, support = keyed.unique(dim=0, return_inverse=True)
    output = torch.arange(outputs, device=masks.device).repeat(bands)
    return distinct[:, 1:].bool(), distinct[:, 0], torch.stack([support, output])
