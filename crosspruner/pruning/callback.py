"""CrossbarPruning: the Lightning callback that prunes for crossbars while a model trains."""

import logging
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from crosspruner.errors import CheckpointError, ConfigError
from crosspruner.hardware import Crossbar, MappingSpec, Plan, plan_model
from crosspruner.pruning.budget import prunable_layers, uniform_budget
from crosspruner.pruning.masked_layer import MaskedLayer
from crosspruner.pruning.schedule import Phase, PruningSchedule
from crosspruner.pruning.step_solver import LayerState, StepSettings, relaxed_projection
from crosspruner.sparsity import GroupLayout

log = logging.getLogger(__name__)


class CrossbarPruning(pl.Callback):
    """Removes a fraction of a model's compute crossbars while it trains.

    Each optimizer step moves the solver's state of every prunable layer, projects it onto the
    crossbars that the schedule leaves the layer at that step, and makes the pruned weights exactly
    zero. At the end of the prune phase the masks freeze at the exact budget. The model's
    `state_dict` keys, shapes and forward pass never change; masks and solver state live in the
    callback's own state, so that a resumed run goes on as if it had never stopped. A second `fit`
    of the same network keeps its masks; one of another network starts anew.

    Args:
        crossbar: a `Crossbar` or text like "256x256".
        mapping: "folded", "semifolded", "unfolded", "liang2018" or a `MappingSpec`.
        grain: "crossbar" or "column".
        ratio: fraction of the model's compute crossbars to remove, in [0, 1).
        schedule: lengths of the phases and shape of the ramp; None = the defaults.
        settings: the solver and its steps; None = `lgd_rpp` on the reconstruction objective.
        include: dotted-name patterns of the layers that may be pruned; None = all.
        exclude: dotted-name patterns of those that may not; None = the first and the last layer.
        input_shape: (C, H, W) of one input; None = of the module's `example_input_array`.
        root: dotted name of the network inside the LightningModule ("net"); "" = the module itself.
        seed: of RPP's draws and of the sampling of patches.

    Raises:
        ConfigError: an argument is out of range.
        BudgetError: (when fitting starts) the ratio cannot be met.

    Source: LGD and RPP each step, Liang et al. 2018; the curvature state is our reading (design,
    sections 4.4 and 4.8).
    """

    def __init__(
        self,
        crossbar: Crossbar | str,
        mapping: MappingSpec | str = "semifolded",
        grain: str = "column",
        ratio: float = 0.5,
        schedule: PruningSchedule | None = None,
        settings: StepSettings | None = None,
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
        self.settings = settings or StepSettings()
        self.include = include
        self.exclude = exclude
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self.root = root
        self.generator = torch.Generator().manual_seed(seed)
        self.dense_plan: Plan | None = None
        self.budget: dict[str, int] = {}
        self.layouts: dict[str, GroupLayout] = {}
        self.states: dict[str, LayerState] = {}
        self.frozen = False
        self.churn = 0.0
        self._total_steps = 0
        self._last_step = -1
        self._watched: list[torch.utils.hooks.RemovableHandle] = []
        self._pending: dict[str, Any] | None = None

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
        self.budget = uniform_budget(self.dense_plan, self.layouts, self.ratio)
        return self.dense_plan

    @property
    def masks(self) -> dict[str, Tensor]:
        """Layer name -> (U, P) bool mask, on the CPU."""
        return {name: state.layer.mask.cpu() for name, state in self.states.items()}

    @property
    def plan(self) -> Plan:
        """The packed plan of what the masks leave."""
        assert self.dense_plan is not None, "prepare() was not called"
        return self.dense_plan.pruned(self.masks, self.grain)

    @property
    def compute_crossbars(self) -> int:
        """Compute crossbars that the masks leave, without building the plan."""
        assert self.dense_plan is not None, "prepare() was not called"
        spared = sum(
            state.layer.layout.blocks * state.layer.layout.crossbars_per_block
            - state.layer.layout.crossbars(state.layer.mask)
            for state in self.states.values()
        )
        return self.dense_plan.compute_crossbars - spared

    # -- Lightning hooks -----------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and self.dense_plan is None:
            self.prepare(self._network(pl_module), self._shape(pl_module))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        modules = dict(self._network(pl_module).named_modules())
        if any(modules.get(name) is not s.layer.module for name, s in self.states.items()):
            self.states = {}  # another network: what the last one had does not concern it
        if not self.states:
            self.frozen = False
            self.states = {
                name: LayerState(MaskedLayer(modules[name], layout), self.settings, self.generator)
                for name, layout in self.layouts.items()
            }
        if self._pending is not None:
            self._restore(self._pending)
            self._pending = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("pruning needs an end: set trainer.max_epochs or trainer.max_steps")
        self._total_steps = int(steps)
        self._last_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._moments_due(trainer.global_step):
            for state in self.states.values():
                self._watched.append(
                    state.layer.module.register_forward_pre_hook(self._watcher(state))
                )

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        # Gradients are unscaled, summed over accumulation and averaged over processes here.
        pruning = self.phase_at(trainer.global_step) is Phase.PRUNE and not self.frozen
        for state in self.states.values():
            slope = state.layer.split_gradient()
            if pruning:
                state.step(slope)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        while self._watched:
            self._watched.pop().remove()
        step = trainer.global_step
        if step == self._last_step:
            return  # gradients are still being accumulated
        self._last_step = step
        if self._refresh_due(step):
            self._refresh(trainer)
        self._update_masks(trainer, pl_module, step)
        for state in self.states.values():
            state.layer.enforce()
        pl_module.log_dict(self._metrics(step), on_step=True, on_epoch=False, rank_zero_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reached = self.frozen or self.ratio == 0
        accuracy = trainer.callback_metrics.get("val/acc")
        if accuracy is not None:
            # What model selection may look at: nothing before the target ratio is reached.
            score = accuracy if reached else torch.zeros_like(accuracy)
            pl_module.log("val/acc_at_ratio", score, rank_zero_only=True)

    # -- the work of a step --------------------------------------------------------------------

    def _update_masks(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        point = self.schedule.at(step, self._total_steps)
        if self.frozen or self.phase_at(step) is Phase.DENSE:
            self.churn = 0.0
            return
        changed = groups = 0
        for name, state in self.states.items():
            layout, before = state.layer.layout, state.layer.mask
            blocks = layout.blocks - round((layout.blocks - self.budget[name]) * point.ramp)
            mask = relaxed_projection(state.dense, blocks, point.relax, layout, self.generator)
            mask = mask.to(before.device)
            flipped = int((mask != before).sum())
            if flipped:
                state.layer.set_mask(mask)
            changed += flipped
            groups += mask.numel()
        self.churn = changed / groups
        if point.phase is Phase.FINETUNE:
            self._freeze(pl_module)

    def _freeze(self, pl_module: pl.LightningModule) -> None:
        self.frozen = True
        for state in self.states.values():
            state.moment = state.inverse_blocks = None
            mask = state.layer.mask.int()
            everyones = pl_module.all_gather(mask)
            assert isinstance(everyones, Tensor)
            assert torch.equal(everyones, mask.expand_as(everyones)), "processes hold unequal masks"
        log.info("masks frozen at %d compute crossbars", self.compute_crossbars)

    def _refresh(self, trainer: pl.Trainer) -> None:
        for state in self.states.values():
            if state.moment is not None:
                moment = trainer.strategy.reduce(state.moment.moment, reduce_op="mean")
                state.refresh(moment)

    def _watcher(self, state: LayerState) -> Any:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if state.moment is not None:
                state.moment.update(inputs[0].detach(), self.generator)

        return watch

    def phase_at(self, step: int) -> Phase:
        """The phase that holds once `step` optimizer steps have been taken."""
        if self.ratio == 0:
            return Phase.DENSE
        return self.schedule.at(step, self._total_steps).phase

    def _in_prune_phase(self, step: int) -> bool:
        return (
            self.settings.needs_moments and not self.frozen and self.phase_at(step) is Phase.PRUNE
        )

    def _moments_due(self, step: int) -> bool:
        if not self._in_prune_phase(step):
            return False
        start = self.schedule.boundaries(self._total_steps)[0]
        return step < self._ramp_start() or (step - start) % self.settings.moment_every == 0

    def _refresh_due(self, step: int) -> bool:
        if not self._in_prune_phase(step):
            return False
        since = step - self._ramp_start()
        return since >= 0 and since % self.settings.refresh_every == 0

    def _ramp_start(self) -> int:
        """First step at which something may be removed: the curvature is known by then."""
        start, stop = self.schedule.boundaries(self._total_steps)
        return start + max(1, round((stop - start) * self.schedule.warmup))

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

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "grain": self.grain,
            "ratio": self.ratio,
            "frozen": self.frozen,
            "generator": self.generator.get_state(),
            "layers": {
                name: {"layer": state.layer.state_dict(), "solver": state.state_dict()}
                for name, state in self.states.items()
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending = state_dict

    def _restore(self, saved: dict[str, Any]) -> None:
        shapes = {n: tuple(s["layer"]["mask"].shape) for n, s in saved["layers"].items()}
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
        for name, state in self.states.items():
            state.layer.load_state_dict(saved["layers"][name]["layer"])
            if self.frozen:
                state.moment = None
            state.load_state_dict(saved["layers"][name]["solver"])

    def _network(self, pl_module: pl.LightningModule) -> nn.Module:
        return pl_module.get_submodule(self.root)

    def _shape(self, pl_module: pl.LightningModule) -> tuple[int, ...]:
        if self.input_shape is not None:
            return self.input_shape
        example = pl_module.example_input_array
        if not isinstance(example, Tensor):
            raise ConfigError(
                "the input shape is unknown: give CrossbarPruning(input_shape=(3, 32, 32)) or set "
                "the module's example_input_array"
            )
        return tuple(example.shape[1:])
