"""The weight and the bias of a layer: read as a matrix, cut by a mask, refitted, written back."""

import torch
from torch import Tensor, nn

from crosspruner.errors import ModelError
from crosspruner.hardware.weight_form import attainable, form_of, read_matrix, write_matrix
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.moments import Moments
from crosspruner.pruning.reconstruct import mean_output, refit
from crosspruner.pruning.walk import Stop
from crosspruner.solver.refit import RefitProblem


def finite_weight(module: nn.Module, name: str) -> Tensor:
    """Weight matrix (Cout, Cin / G, kh, kw) that a layer computes with.

    Raises:
        ModelError: the weight is computed in a way that is not known, or not finite.
    """
    if form_of(module) == "computed":
        raise ModelError(
            f"layer {name} computes its weight anew in each pass ({type(module).__name__}): remove "
            "the parametrization first, or exclude the layer"
        )
    weight = read_matrix(module)
    if not bool(weight.isfinite().all()):
        raise ModelError(f"layer {name} has NaN or Inf in its weight: give a network that works")
    return weight


def survivors(
    module: nn.Module,
    mask: Tensor,
    moments: Moments,
    settings: LayerwiseSettings,
    known: RefitProblem | None = None,
) -> tuple[Tensor, Tensor]:
    """The weights that a mask leaves a layer.

    Args:
        module: the layer.
        mask: (U, P) bool.
        moments: of the layer, in the layout that the mask means; centred where means are taken up.
        settings: whether and how to refit.
        known: a problem of these moments, see `reconstruct.refit`.

    Returns:
        The surviving weights as they were, and refitted where that is set.
    """
    weight = read_matrix(module)
    fixed = torch.where(moments.layout.expand_like(mask, weight).to(weight.device), weight, 0.0)
    new = refit(moments, weight, mask, settings.damping, known) if settings.refit else fixed
    return fixed, attainable(module, new)


def moved_bias(stop: Stop, raw: Moments, new: Tensor, settings: LayerwiseSettings) -> Tensor | None:
    """The bias that gives a layer with new weights the mean output of the dense one.

    Args:
        stop: the layer.
        raw: its moments, not centred.
        new: (Cout, fan_in, ...).
        settings: whether the bias may move.

    Returns:
        (Cout,); None where the bias stays.
    """
    bias = stop.modules[0]._parameters.get("bias")
    if bias is None or not moves_bias(stop, settings):
        return None
    return bias + (raw.mean_out.flatten() - mean_output(raw, new)).to(bias)


def write_weight(stop: Stop, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer new weights and, unless it stays (None), another bias, in place."""
    module = stop.modules[0]
    if bias is not None:
        module.get_parameter("bias").copy_(bias)
    write_matrix(module, weight)


def takes_up_means(stop: Stop, settings: LayerwiseSettings) -> bool:
    """Whether a batch norm or a bias takes up any shift, so that only variation counts."""
    return stop.norm is not None or moves_bias(stop, settings)


def moves_bias(stop: Stop, settings: LayerwiseSettings) -> bool:
    """Whether the refit moves the layer's bias, which a weight that is used once can have."""
    return settings.refit and stop.modules[0].bias is not None and len(stop.modules) == 1
