"""`prune`: a trained network in, a pruned one out, in one call and without a training run."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crosspruner.errors import ConfigError, ModelError, SolverError
from crosspruner.hardware import Crossbar, MappingSpec, Plan, plan_model
from crosspruner.pruning.budget import prunable_layers
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.calibration import read_batches
from crosspruner.pruning.layer_order import REORDERS
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.network_solver import WHOLE_NETWORK
from crosspruner.pruning.procedure import prune_network
from crosspruner.pruning.saving import save_pruned
from crosspruner.pruning.seed import seeded
from crosspruner.pruning.sensitivity import Evaluate
from crosspruner.solver import SOLVERS


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What `prune` returns."""

    model: nn.Module
    """A pruned copy of the network, of the same class, keys and shapes; pruned weights are 0."""
    plan: Plan
    """Its packed plan."""
    dense_plan: Plan
    """The plan before pruning."""
    masks: dict[str, Tensor]
    """Layer name -> (U, P) bool, True = kept; layers that may not be pruned have none."""
    errors: dict[str, float]
    """Layer name -> squared error of its outputs on the calibration images, relative to them."""
    stopped_by: dict[str, str] = field(default_factory=dict)
    """Layer name -> "accuracy", "ratio", "crossbars" or "target", with budget "sensitivity"."""

    @property
    def saved(self) -> float:
        """Fraction of the compute crossbars that went, 0-1."""
        return 1 - self.plan.compute_crossbars / self.dense_plan.compute_crossbars

    def save(self, folder: str | Path) -> Path:
        """Write weights.safetensors, masks.safetensors and mapping.json.

        The weights have the keys of the network's own state dict, so they load into it with
        `load_state_dict(safetensors.torch.load_file(...))`.

        Returns:
            The folder.

        Raises:
            ConfigError: there is a file of that name.
        """
        save_pruned(folder, self.model, self.plan, self.masks)
        return Path(folder)


def prune(
    model: nn.Module,
    calibration_loader: Iterable[Any],
    crossbar: Crossbar | str = "256x256",
    mapping: MappingSpec | str = "semifolded",
    grain: str = "column",
    ratio: float = 0.5,
    solver: str = "lgd_rpp",
    reorder: str = "none",
    budget: BudgetSettings | str = "uniform",
    refit: bool = True,
    kin: int | None = None,
    kout: int | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    seed: int = 0,
    input_shape: tuple[int, ...] | None = None,
    evaluate: Evaluate | None = None,
) -> PruneResult:
    """Remove a fraction of a trained network's compute crossbars, layer by layer, in closed form.

    Each layer's mask is chosen on the moments of its inputs, its surviving weights are refitted to
    what the dense network puts out, and batch-norm statistics are set right before the next
    layer is looked at. No labels, no gradients; some hundred images are enough.

    Args:
        model: any module whose forward takes one tensor. It is left as it is: weights, buffers,
            mode, hooks, gradients.
        calibration_loader: batches of images as the network sees them in use: tensors,
            (images, ...) tuples, or dictionaries. Read once, and held in memory.
        crossbar: the array, or its size as text.
        mapping: "folded", "semifolded", "unfolded", "liang2018" or a `MappingSpec`.
        grain: what goes as a unit: "crossbar" (a block) or "column" (one column of a block).
        ratio: fraction of the model's compute crossbars to remove, in [0, 1).
        solver: what chooses the masks, a key of `crosspruner.solver.SOLVERS`, or, with
            budget "global", one of `pruning.network_solver.WHOLE_NETWORK`.
        reorder: "importance" sorts each layer's input FMs by their energy at its outputs, so that
            FMs of equal importance share crossbars; "tetris" gathers those that the same outputs
            read; "linear" sorts in linear layers only; "best" prunes the network with each of these
            and with none, on half of the images at a time, and takes what changes its answers
            least; "none" takes them as they come.
        budget: how the ratio is divided among the layers: "uniform" (one share for all), "global"
            (where it costs least), "sensitivity" (in each layer as far as the accuracy allows, the
            ratio at most), or `BudgetSettings`.
        refit: refit the surviving weights (and biases), and choose masks for that.
        kin: input FMs per crossbar; None = of the mapping.
        kout: output FMs per crossbar; None = of the mapping.
        include: names or patterns of the layers that may be pruned; None = all.
        exclude: names or patterns of those that may not; None = the first and the last.
        seed: of all randomness.
        input_shape: shape of one image; None = of the first batch.
        evaluate: accuracy (0 to 1) of a network on held-out images; budget "sensitivity" needs it.

    Returns:
        The pruned copy, its plan, and the masks.

    Raises:
        ConfigError, SolverError: an argument is out of range or unknown.
        BudgetError: the ratio cannot be met; the message says which can.
        DataError: the loader gives no images, or NaN or Inf turn up.
        ModelError: the network does not run on the images, or cannot be copied.

    Source: the layer-wise procedure of Liang et al., IEEE Access 2018; moments, refit and targets
    from the dense network are our reading (design, sections 4.3 to 4.6).
    """
    _check_choice("grain", grain, ("crossbar", "column"))
    _check_choice("reorder", reorder, REORDERS)
    known = (*SOLVERS, *WHOLE_NETWORK)
    if solver not in known:
        raise SolverError(f"solver={solver!r} is unknown: use one of {', '.join(known)}")
    generator = seeded(seed)
    batches = read_batches(calibration_loader, model)
    shape = tuple(batches[0].shape[1:]) if input_shape is None else input_shape
    spec = MappingSpec.of(mapping)
    spec = replace(
        spec, kin=spec.kin if kin is None else kin, kout=spec.kout if kout is None else kout
    )
    try:
        plan = plan_model(model, shape, crossbar, spec, grain, include, exclude)
    except ModelError as error:
        if input_shape is not None or error.__cause__ is None:
            raise
        raise _no_batch(batches[0], model, error.__cause__) from error
    layouts = prunable_layers(plan, grain)
    how = BudgetSettings.of(budget)
    how.first_blocks(plan, layouts, ratio)  # refuses what cannot be met before anything is computed

    network = _copy(model)
    settings = LayerwiseSettings(solver, reorder, refit)
    result = prune_network(
        *(network, _copy(model), plan, layouts, ratio, batches, settings),
        *(how, generator, evaluate),
    )
    packed = plan.pruned(result.masks, grain, result.orders)
    return PruneResult(network, packed, plan, result.masks, result.errors, result.stopped_by)


def _no_batch(batch: Tensor, model: nn.Module, cause: BaseException) -> ModelError:
    """What to say where the shape was taken from a batch that the network does not run on."""
    return ModelError(
        f"{type(model).__name__} cannot run on the images of a batch of shape "
        f"{tuple(batch.shape)} ({type(cause).__name__}: {cause}): a batch must be (B, C, H, W), as "
        "the network takes it. Did you pass a Dataset? Wrap it in a DataLoader; a single image is "
        "image[None]"
    )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): give the "
            "bare network, without the trainer or graph that holds on to it"
        ) from error


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value!r} is unknown: use one of {', '.join(allowed)}")
