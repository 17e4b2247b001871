"""What the dense network puts out at drawn positions: what the pruned layers are fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crosspruner.hardware.layer_modules import output_maps
from crosspruner.pruning.walk import Stop, run_through

SHARED_BY = 64
"""Images that share a draw of positions: few, so that all positions are seen."""


@dataclass(frozen=True)
class Targets:
    """Outputs of one layer, without bias, at some of its positions."""

    values: Tensor
    """(N, Cout, n) for N samples along the first axis of the layer's output."""
    positions: Tensor
    """(n,) int64, places in the flattened output map (or sequence)."""
    size: tuple[int, int]
    """Height and width of that map; (length, 1) for linear layers."""

    @classmethod
    def draw(
        cls,
        module: nn.Module,
        output: Tensor,
        positions: int | None = None,
        generator: torch.Generator | None = None,
        biased: bool = True,
    ) -> "Targets":
        """Keep a layer's output at positions drawn without replacement.

        Args:
            module: the layer, one of `layer_modules.LAYERS`.
            output: what it put out, (N, Cout, H, W) or (N, ..., Cout), or as its kind has it.
            positions: how many to draw; None, or more than there are, takes all.
            generator: CPU generator of the draw.
            biased: whether `output` holds the bias, which is then subtracted.
        """
        maps = output_maps(module, output)
        size = (maps.shape[2], maps.shape[3])
        available = size[0] * size[1]
        chosen = torch.arange(available)
        if positions is not None and positions < available:
            chosen = torch.randperm(available, generator=generator)[:positions]
        values = maps.flatten(2)
        if len(chosen) < available:
            values = values[:, :, chosen.to(values.device)]
        bias = module.bias
        if biased and isinstance(bias, Tensor):
            values = values - bias.view(-1, 1)
        else:
            values = values.clone()  # what comes behind the layer may overwrite its output
        return cls(values, chosen, size)


@torch.no_grad()
def dense_targets(
    dense: nn.Module,
    images: Tensor,
    places: Sequence[Stop],
    positions: int | None,
    generator: torch.Generator,
) -> dict[str, list[Targets]]:
    """The outputs of several layers in one pass, in parts of `SHARED_BY` samples.

    Args:
        dense: the network, in evaluation mode.
        images: all calibration images, (N, ...).
        places: its layers; batch norms among them are passed over.
        positions: to draw per image.
        generator: CPU generator of the draws.
    """
    found: dict[str, list[Targets]] = {}

    def note(stop: Stop, module: nn.Module, output: Tensor) -> None:
        parts = output.split(SHARED_BY)
        found[stop.name] = [Targets.draw(module, p, positions, generator) for p in parts]

    run_through(dense, images, [p for p in places if not p.is_norm], after=note)
    return found
