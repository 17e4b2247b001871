"""HeldRun: the Lightning callback that trains a finished run's pruned network further."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from safetensors.torch import load_file
from torch import nn

from crosspruner.errors import ConfigError, ModelError, RunFolderError
from crosspruner.hardware import Plan
from crosspruner.pruning.layerwise_callback import LayerwisePruning, bare_copy
from crosspruner.pruning.procedure import ProcedureResult
from crosspruner.sparsity import GroupLayout

# How far the ratio that is asked for may be from what the run has saved.
_NEAR = 0.005


class HeldRun(LayerwisePruning):
    """Puts a network under the masks and the weights that an earlier run ended with.

    As `LayerwisePruning`, with its decisions read instead of made: at the first step after the
    dense epochs the network becomes the pruned one of that run, and its masks stay as they are.

    Args:
        run: folder of the run, of which pruned/ is read.
        others: as of `LayerwisePruning`; crossbar, mapping, grain and ratio are those of the run.

    Raises:
        RunFolderError: that is no folder of a finished run.
        ConfigError: the schedule has dense epochs; or (when fitting starts) the run was pruned for
            other crossbars, another mapping, grain or ratio.
        ModelError: (likewise) the run's network is another one.
    """

    def __init__(self, run: str | Path, **others: Any) -> None:
        super().__init__(**others)
        if self.schedule.dense_epochs > 0:
            raise ConfigError(
                f"schedule.dense_epochs={self.schedule.dense_epochs:g} would train a dense network "
                "that the pruned one then replaces: type schedule=from_dense"
            )
        self.run = Path(run)
        self.saved_plan = Plan.load(_file(self.run, "pruned/mapping.json"))
        masks = load_file(_file(self.run, "pruned/masks.safetensors"))
        self.saved_masks = {name: mask.bool() for name, mask in masks.items()}
        self.weights = load_file(_file(self.run, "pruned/weights.safetensors"))

    def prepare(self, network: nn.Module, input_shape: Sequence[int]) -> Plan:
        asked, self.ratio = self.ratio, 0.0  # the run has found a way to meet it
        plan = super().prepare(network, input_shape)
        self._compare(plan, network, asked)
        self.layouts = {
            name: GroupLayout.of(self.saved_plan.layer(name), self.grain)
            for name in self.saved_masks
        }
        self.blocks = {
            name: layout.blocks_of(self.saved_masks[name]) for name, layout in self.layouts.items()
        }
        self.ratio = self.saved_plan.compute_saved
        return plan

    def decide(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[ProcedureResult, nn.Module]:
        pruned_copy = bare_copy(self.network(pl_module))
        pruned_copy.load_state_dict(self.weights)
        return ProcedureResult(dict(self.saved_masks), dict(self.layouts)), pruned_copy

    def _compare(self, plan: Plan, network: nn.Module, asked: float) -> None:
        had = self.saved_plan
        for key in ("crossbar", "mapping", "grain"):
            given, theirs = getattr(plan, key), getattr(had, key)
            if given != theirs:
                raise ConfigError(
                    f"{self.run} was pruned with {key}={theirs}, this run has {given}: give the "
                    "crossbar, mapping and grain of that run"
                )
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        theirs = {name: tensor.shape for name, tensor in self.weights.items()}
        if shapes != theirs:
            name = min(n for n in shapes | theirs if shapes.get(n) != theirs.get(n))
            raise ModelError(
                f"{self.run} has pruned another network: {name} is {_shape(theirs, name)} there "
                f"and {_shape(shapes, name)} here; give the model of that run"
            )
        if abs(asked - had.compute_saved) > _NEAR:
            raise ConfigError(
                f"{self.run} has saved {had.compute_saved:.2%} of the compute crossbars, this run "
                f"asks for ratio={asked:g}: type ratio={had.compute_saved:.3f}"
            )


def dense_weights(run: str | Path) -> Path:
    """The file of the dense network that a run has pruned.

    Raises:
        RunFolderError: the run has none.
    """
    return _file(Path(run), "checkpoints/dense.safetensors")


def _file(run: Path, name: str) -> Path:
    if not (run / name).is_file():
        raise RunFolderError(
            f"procedure.run={run} has no {name}: give the folder of a finished run that pruned"
        )
    return run / name


def _shape(shapes: dict[str, Any], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "absent"
