"""What the pruning callbacks share: plan, budget, masks that stay zero, metrics, resume."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from crosspruner.errors import CheckpointError, ConfigError
from crosspruner.hardware import Crossbar, MappingSpec, Plan, plan_model
from crosspruner.pruning.budget import prunable_layers
from crosspruner.pruning.budget_settings import BudgetSettings
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)


class PruningCallback(pl.Callback):
    """Keeps a model's layers under masks while it trains.

    The model's `state_dict` keys, shapes and forward pass never change; masks live in the
    callback's own state, so that a resumed run goes on as if it had never stopped. A second `fit`
    of the same network keeps its masks; one of another network starts anew.

    Subclasses say what the masks are (`change_masks`) and what more they keep (`extra_state`).

    Args:
        crossbar: a `Crossbar` or text like "256x256".
        mapping: "folded", "semifolded", "unfolded", "liang2018" or a `MappingSpec`.
        grain: "crossbar" or "column".
        ratio: fraction of the model's compute crossbars to remove, in [0, 1).
        schedule: lengths of the phases; None = the defaults.
        budget: how the ratio is divided among the layers, by name or with its settings. With
            "per_layer", `ratio` is what the layers' ratios come to.
        include: dotted-name patterns of the layers that may be pruned; None = all.
        exclude: dotted-name patterns of those that may not; None = the first and the last layer.
        input_shape: (C, H, W) of one input; None = of the module's `example_input_array`.
        root: dotted name of the network inside the LightningModule ("net"); "" = the module itself.
        seed: of all draws.

    Raises:
        ConfigError: an argument is out of range.
        BudgetError: (when fitting starts) the ratio cannot be met.
    """

    def __init__(
        self,
        crossbar: Crossbar | str,
        mapping: MappingSpec | str = "semifolded",
        grain: str = "column",
        ratio: float = 0.5,
        schedule: PruningSchedule | None = None,
        budget: BudgetSettings | str = "uniform",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        input_shape: Sequence[int] | None = None,
        root: str = "",
        seed: int = 0,
    ) -> None:
        if not 0 <= ratio < 1:
            raise ConfigError(f"ratio={ratio} is out of range: give a fraction from 0 to below 1")
        self.crossbar = Crossbar.parse(crossbar) if isinstance(crossbar, str) else crossbar
        self.mapping = MappingSpec.of(mapping)
        self.grain = grain
        self.ratio = ratio
        self.schedule = schedule or PruningSchedule()
        self.how = BudgetSettings.of(budget)
        self.include = include
        self.exclude = exclude
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self.root = root
        self.generator = torch.Generator().manual_seed(seed)
        self.dense_plan: Plan | None = None
        self.layouts: dict[str, GroupLayout] = {}
        self.blocks: dict[str, int] = {}
        self.layers: dict[str, MaskedLayer] = {}
        self.frozen = False
        self.pruned_at_the_end = False  # after the last step: what was validated is not the result
        self.churn = 0.0
        self._total_steps = 0
        self._last_step = -1
        self._pending: dict[str, Any] | None = None

    # -- what a subclass does ------------------------------------------------------------------

    def begin(self) -> None:
        """The layers are there, all groups kept."""

    @abstractmethod
    def change_masks(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Set the masks that hold once `step` optimizer steps have been taken, and `churn`."""

    def see_slope(self, name: str, slope: Tensor) -> None:
        """Take in dLoss/dbeta (U, P) of a layer, before each optimizer step."""

    def extra_state(self) -> dict[str, Any]:
        """Tensors and plain Python that a resumed run needs besides the masks."""
        return {}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""

    # -- what is to be pruned, and what is left of it ------------------------------------------

    def prepare(self, network: nn.Module, input_shape: Sequence[int]) -> Plan:
        """Plan the network and divide the budget; done once, before training.

        Args:
            network: the model to prune.
            input_shape: (C, H, W) of one input.

        Returns:
            The dense plan.

        Raises:
            BudgetError, ConfigError, MappingError: the ratio, a pattern or Kin/Kout cannot be met.
        """
        self.dense_plan = plan_model(
            network,
            tuple(input_shape),
            self.crossbar,
            self.mapping,
            self.grain,
            self.include,
            self.exclude,
        )
        self.layouts = prunable_layers(self.dense_plan, self.grain)
        self.blocks, self.ratio = self.how.first_blocks(self.dense_plan, self.layouts, self.ratio)
        return self.dense_plan

    @property
    def masks(self) -> dict[str, Tensor]:
        """Layer name -> (U, P) bool mask, on the CPU."""
        return {name: layer.mask.cpu() for name, layer in self.layers.items()}

    @property
    def plan(self) -> Plan:
        """The packed plan of what the masks leave."""
        assert self.dense_plan is not None, "prepare() was not called"
        orders = {
            name: layer.layout.input_order
            for name, layer in self.layers.items()
            if layer.layout.input_order is not None
        }
        return self.dense_plan.pruned(self.masks, self.grain, orders)

    @property
    def compute_crossbars(self) -> int:
        """Compute crossbars that the masks leave, without building the plan."""
        assert self.dense_plan is not None, "prepare() was not called"
        spared = sum(
            layer.layout.blocks * layer.layout.crossbars_per_block
            - layer.layout.crossbars(layer.mask)
            for layer in self.layers.values()
        )
        return self.dense_plan.compute_crossbars - spared

    # -- Lightning hooks -----------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and self.dense_plan is None:
            self.prepare(self.network(pl_module), self._shape(pl_module))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        modules = dict(self.network(pl_module).named_modules())
        if any(modules.get(name) is not layer.module for name, layer in self.layers.items()):
            self.layers = {}  # another network: what the last one had does not concern it
        if not self.layers:
            self.frozen = False
            self.layers = {
                name: MaskedLayer(modules[name], layout) for name, layout in self.layouts.items()
            }
            self.begin()
        if self._pending is not None:
            self._restore(self._pending)
            self._pending = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("pruning needs an end: set trainer.max_epochs or trainer.max_steps")
        self._total_steps = int(steps)
        self._last_step = trainer.global_step

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        # Gradients are unscaled, summed over accumulation and averaged over processes here.
        for name, layer in self.layers.items():
            self.see_slope(name, layer.split_gradient())

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:
            return  # gradients are still being accumulated
        self._last_step = step
        self.churn = 0.0
        if not self.frozen and self.phase_at(step) is not Phase.DENSE:
            self.change_masks(trainer, pl_module, step)
        for layer in self.layers.values():
            layer.enforce()
        pl_module.log_dict(self._metrics(step), on_step=True, on_epoch=False, rank_zero_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reached = self.frozen or self.ratio == 0
        accuracy = trainer.callback_metrics.get("val/acc")
        if accuracy is not None:
            # What model selection may look at: nothing before the target ratio is reached.
            score = accuracy if reached else torch.zeros_like(accuracy)
            pl_module.log("val/acc_at_ratio", score, rank_zero_only=True)

    def phase_at(self, step: int) -> Phase:
        """The phase that holds once `step` optimizer steps have been taken."""
        if self.ratio == 0:
            return Phase.DENSE
        return self.schedule.at(step, self._total_steps).phase

    def freeze(self, pl_module: pl.LightningModule) -> None:
        """The masks stay as they are from now on, on every process alike."""
        self.frozen = True
        for layer in self.layers.values():
            mask = layer.mask.int()
            everyones = pl_module.all_gather(mask)
            assert isinstance(everyones, Tensor)
            assert torch.equal(everyones, mask.expand_as(everyones)), "processes hold unequal masks"
        log.info("masks frozen at %d compute crossbars", self.compute_crossbars)

    def set_masks(self, masks: dict[str, Tensor]) -> None:
        """Put the layers under new masks and note the share of groups that changed."""
        changed = groups = 0
        for name, mask in masks.items():
            layer = self.layers[name]
            flipped = int((mask.to(layer.mask.device) != layer.mask).sum())
            if flipped:
                layer.set_mask(mask)
            changed += flipped
            groups += mask.numel()
        self.churn = changed / max(groups, 1)

    def network(self, pl_module: pl.LightningModule) -> nn.Module:
        """The network inside the LightningModule."""
        return pl_module.get_submodule(self.root)

    def _metrics(self, step: int) -> dict[str, float]:
        assert self.dense_plan is not None
        dense, left = self.dense_plan.compute_crossbars, self.compute_crossbars
        point = self.schedule.at(step, self._total_steps)
        return {
            "prune/phase": float(self.phase_at(step - 1)),  # of the step that was just taken
            "prune/ratio": 1 - left / dense,
            "prune/relax": point.relax,
            "prune/mask_churn": self.churn,
            "crossbars/compute": float(left),
            "crossbars/saved": float(dense - left),
        }

    def _shape(self, pl_module: pl.LightningModule) -> tuple[int, ...]:
        if self.input_shape is not None:
            return self.input_shape
        example = pl_module.example_input_array
        if not isinstance(example, Tensor):
            raise ConfigError(
                f"the input shape is unknown: give {type(self).__name__}(input_shape=(3, 32, 32)) "
                "or set the module's example_input_array"
            )
        return tuple(example.shape[1:])

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "grain": self.grain,
            "ratio": self.ratio,
            "frozen": self.frozen,
            "generator": self.generator.get_state(),
            "layers": {name: layer.state_dict() for name, layer in self.layers.items()},
            "extra": self.extra_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending = state_dict

    def _restore(self, saved: dict[str, Any]) -> None:
        shapes = {n: tuple(s["mask"].shape) for n, s in saved["layers"].items()}
        ours = {name: layout.shape for name, layout in self.layouts.items()}
        if saved["grain"] != self.grain or shapes != ours:
            raise CheckpointError(
                f"the checkpoint was pruned at grain={saved['grain']} in the layers "
                f"{', '.join(f'{n} {s}' for n, s in shapes.items())}; this run has "
                f"grain={self.grain} and {', '.join(f'{n} {s}' for n, s in ours.items())}: resume "
                "with the model, crossbar, mapping and grain of that run"
            )
        if saved["ratio"] != self.ratio:
            raise CheckpointError(
                f"the checkpoint was pruned with ratio={saved['ratio']}, this run has "
                f"ratio={self.ratio}: resume with ratio={saved['ratio']}, or start a new run from "
                "its weights with model.weights=FILE"
            )
        self.frozen = saved["frozen"]
        self.generator.set_state(saved["generator"])
        for name, layer in self.layers.items():
            layer.load_state_dict(saved["layers"][name])
        self.restore_extra(saved["extra"])
