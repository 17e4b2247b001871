"""What each training step does to the state of a layer, and the mask that state asks for.

`lgd_rpp` keeps a dense state d per layer. Each step moves d in dense space along a gradient taken
at the current mask (LGD) and projects it with RPP onto the layer's crossbars; RPP's relaxation
anneals to nothing, so that late masks are quiet. Two objectives give the gradient:

    reconstruction   d moves toward the refit-aware saliency of each group (curvature.py): the
                     gradient of |d - s|^2 / 2, s the error that removing the group would cost, each
                     output's error weighed by the squared task gradient there
    loss             the task gradient dLoss/dbeta, smoothed and normalised

The other solvers are the plain scores to compare with, under the same schedule and projection.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosspruner.pruning.curvature import RunningFisher, RunningMoment, saliency
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.pruning.step_settings import StepSettings
from crosspruner.solver.rpp import relaxed_scores
from crosspruner.sparsity import GroupLayout, project


class StepState:
    """The solver's state of one layer.

    Args:
        layer: the layer under its mask.
        settings: how the state moves.
        generator: CPU generator; the random solver draws its scores from it once.
    """

    def __init__(
        self, layer: MaskedLayer, settings: StepSettings, generator: torch.Generator
    ) -> None:
        self.layer = layer
        self.settings = settings
        self.dense = torch.zeros(layer.layout.shape)
        self.slope = torch.zeros(layer.layout.shape)
        self.started = False
        self.moment: RunningMoment | None = None
        self.fisher: RunningFisher | None = None
        self.inverse_blocks: Tensor | None = None
        if settings.name == "random":
            self.dense = torch.rand(layer.layout.shape, generator=generator)
        # Other kinds of layers keep the assumption of white inputs.
        if settings.needs_moments and isinstance(layer.module, nn.Conv2d | nn.Linear):
            self.moment = RunningMoment(layer.module, layer.layout, rows=settings.moment_rows)
            if settings.output_weights == "fisher":
                self.fisher = RunningFisher(layer.module)

    def watch(
        self,
        inputs: Tensor,
        output: Tensor,
        generator: torch.Generator,
        rows: int | None = None,
    ) -> None:
        """Take in one batch that passes through the layer, and the gradient that comes back.

        Args:
            inputs: the layer's input. output: what it gave.
            generator: CPU generator of the patches drawn.
            rows: patches to draw; None = `moment_rows`.
        """
        if self.moment is None:
            return
        high, wide = (1, *output.shape)[-2:]  # not looked at where the layer is linear
        self.moment.update(inputs, generator, rows, (high, wide))
        if self.fisher is not None and output.requires_grad:
            output.register_hook(self.fisher.update)

    def average(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Replace what was watched by its mean over all processes."""
        if self.moment is not None:
            self.moment.moment = mean(self.moment.moment)
            # A process that skipped a batch has seen less: each counts by what it has seen.
            seen = torch.tensor(self.moment.seen, dtype=self.moment.moment.dtype)
            self.moment.seen = float(mean(seen.to(self.moment.moment.device)))
        if self.fisher is not None:
            self.fisher.average = mean(self.fisher.average)

    def refresh(self) -> None:
        """Invert the running moment."""
        if self.moment is None or self.moment.seen == 0:
            return
        if self.inverse_blocks is None:
            self.started = False  # what was assumed before any input was seen is not worth keeping
        self.inverse_blocks = self.moment.inverse_blocks(self.settings.damping)

    @torch.no_grad()
    def step(self, slope: Tensor) -> Tensor:
        """Move the state by one training step and return it.

        Args:
            slope: (U, P) dLoss/dbeta of this step.

        Returns:
            (U, P) on the CPU; higher = more worth keeping.
        """
        solver = self.settings.name
        if solver == "magnitude":
            self.dense = block_norms(self.layer)
        elif solver == "taylor":
            keep = self.settings.smoothing
            self.dense = keep * self.dense + (1 - keep) * slope.abs().cpu()
        elif solver == "lgd_rpp":
            self._descend(slope.cpu())
        return self.dense

    def _descend(self, slope: Tensor) -> None:
        eta = self.settings.step_size
        if self.settings.objective == "reconstruction":
            target = self._saliency()
            self.dense = target if not self.started else self.dense + eta * (target - self.dense)
        else:
            if not self.started:
                self.dense = block_norms(self.layer)
                self.dense /= self.dense.mean().clamp(min=torch.finfo(self.dense.dtype).tiny)
            keep = self.settings.smoothing
            self.slope = keep * self.slope + (1 - keep) * slope
            scale = self.slope.std().clamp(min=torch.finfo(slope.dtype).tiny)
            self.dense = (self.dense - eta * self.slope / scale).clamp(min=0)
        self.started = True

    def _saliency(self) -> Tensor:
        blocks, layout = self.inverse_blocks, self.layer.layout
        weight = self.layer.latent().float()
        if blocks is None:  # nothing seen yet: white inputs
            width = layout.kin * weight[0, 0].numel()
            blocks = torch.eye(width).expand(layout.conv_groups, layout.input_groups, width, width)
        weights = None if self.fisher is None else self.fisher.weights()
        return saliency(weight, blocks.to(weight.device), layout, weights).cpu()

    def state_dict(self) -> dict[str, object]:
        """Tensors and plain numbers that a resumed run needs."""
        state: dict[str, object] = {
            "dense": self.dense,
            "slope": self.slope,
            "started": self.started,
            "inverse_blocks": self.inverse_blocks,
        }
        if self.moment is not None:
            state |= {"moment": self.moment.moment, "seen": self.moment.seen}
        if self.fisher is not None:
            state |= {"fisher": self.fisher.average}
        return state

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`."""
        self.dense, self.slope = state["dense"], state["slope"]
        self.started, self.inverse_blocks = state["started"], state["inverse_blocks"]
        if self.moment is not None:
            self.moment.moment, self.moment.seen = state["moment"], state["seen"]
        if self.fisher is not None:
            self.fisher.average = state["fisher"]


def block_norms(layer: MaskedLayer) -> Tensor:
    """(U, P) L2 norm of each group's latent weights, on the CPU."""
    return layer.layout.sum_by_group(layer.latent().float().square()).sqrt().cpu()


def relaxed_projection(
    state: Tensor, blocks: int, relax: float, layout: GroupLayout, generator: torch.Generator
) -> Tensor:
    """RPP onto a number of crossbars: draw among the relaxed candidates, then fill the crossbars.

    Args:
        state: (U, P) finite.
        blocks: blocks to keep.
        relax: RPP's relaxation, >= 0; 0 is the plain projection and draws nothing.
        layout: the groups.
        generator: CPU generator of the draw.

    Returns:
        (U, P) bool, exactly `blocks` blocks.

    Source: Liang et al. 2018 (RPP); the draw over a whole layer and onto the staircase of packed
    columns is our reading.
    """
    if relax > 0 and blocks < layout.blocks:
        groups = blocks if layout.grain == "crossbar" else min(blocks * layout.kout, state.numel())
        state = relaxed_scores(state.reshape(1, -1), groups, relax, generator).view_as(state)
    return project(state, blocks, layout)
