"""A moving average of the weights is what is validated and kept; pruned weights stay zero."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from crosspruner.errors import CheckpointError, ConfigError
from crosspruner.hardware.effective import weight_name
from crosspruner.pruning.pruning_callback import PruningCallback

TRAINED = "trained_state"
"""Key of a checkpoint: the weights that training goes on from; `state_dict` holds the average."""


class WeightAverage(pl.Callback):
    """Keeps a_n = d_n a_{n-1} + (1 - d_n) w_n of all weights and buffers, n counting the steps.

    d_n = min(decay, (1 + n) / (10 + n)), so that the first steps do not linger. What is pruned is
    exactly zero in the average too; a group that comes back starts at its present weight. The
    average starts anew from the weights when the masks freeze: before that it is one of many masks.

    The network holds the average while it is validated and after the fit. Checkpoints hold it as
    their `state_dict`, and the weights that training goes on from beside it. Both stay on the
    network's device: memory for one more network, for two while validating.

    Args:
        decay: in (0, 1); 1 / (1 - decay) steps are remembered.
        pruning: the callback that says what is pruned; it must come before this one.

    Raises:
        ConfigError: decay is out of range.
        CheckpointError: (in a resumed run) the checkpoint was made without an average.
    """

    def __init__(self, decay: float, pruning: PruningCallback) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"ema={decay} is out of range: give a decay between 0 and 1, 0.999")
        self.decay = decay
        self.pruning = pruning
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self.frozen = False
        self._network: nn.Module | None = None
        self._masks: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}
        self._last_step = -1

    # -- the average ---------------------------------------------------------------------------

    def start(self, network: nn.Module) -> None:
        """Forget what was averaged and begin from the weights as they are."""
        self.average = {
            key: value.detach().float().clone() if value.is_floating_point() else value.clone()
            for key, value in network.state_dict().items()
        }
        self.updates = 0
        self._note_masks()

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after one more optimizer step, and the masks that hold now."""
        if self._starts_anew(network):
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = network.state_dict()
        averaged = [key for key, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[key] for key in averaged],
            [state[key].float() for key in averaged],
            weight=1 - decay,
        )
        for key in state.keys() - set(averaged):
            self.average[key].copy_(state[key])
        for name, layer in self.pruning.layers.items():
            average, weight = self.average[weight_name(name, self.average)], layer.weight.detach()
            average.masked_fill_(layer.gone, 0.0)
            before = self._masks[name]
            if not self.frozen and not torch.equal(before, layer.mask):
                back = layer.spread(layer.mask & ~before)
                average.copy_(torch.where(back, weight.to(average), average))
        if not self.frozen:
            self._note_masks()

    def state_of(self, network: nn.Module) -> dict[str, Tensor]:
        """The network's state dict with the average in it; its own where there is none yet."""
        state = network.state_dict()
        if network is not self._network or not self.average:
            return state
        self._starts_anew(network)
        return {key: self.average[key].to(value.dtype) for key, value in state.items()}

    def _starts_anew(self, network: nn.Module) -> bool:
        """Whether the masks have frozen since the last look; the average is the weights then."""
        if self.frozen == self.pruning.frozen:
            return False
        self.frozen = self.pruning.frozen
        self.start(network)
        return True

    def _note_masks(self) -> None:
        self._masks = {name: layer.mask.clone() for name, layer in self.pruning.layers.items()}

    # -- Lightning hooks -----------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = self.pruning.network(pl_module)
        if self.average and self._network in (None, network):  # resumed, or a second fit
            device = next(iter(network.parameters())).device
            self.average = {key: value.to(device) for key, value in self.average.items()}
            self._note_masks()
        else:
            self.frozen = self.pruning.frozen
            self.start(network)
        self._network = network
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.update(self.pruning.network(pl_module))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._show(self.pruning.network(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hide(self.pruning.network(pl_module))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._hide(self.pruning.network(pl_module))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = self.pruning.network(pl_module)
        network.load_state_dict(self.state_of(network))

    def _show(self, network: nn.Module) -> None:
        """Put the average into the network."""
        if self.average:
            averaged = self.state_of(network)
            self._trained = {key: value.clone() for key, value in network.state_dict().items()}
            network.load_state_dict(averaged)

    def _hide(self, network: nn.Module) -> None:
        """Put the weights that are trained back into it."""
        if not self._trained:
            return
        for key, buffer in network.named_buffers():
            if key in self.average:  # another callback may have measured batch norms for these
                self.average[key].copy_(buffer)
        network.load_state_dict(self._trained)
        self._trained = {}

    # -- state ---------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self.average:
            return
        network, prefix = self.pruning.network(pl_module), self._prefix()
        checkpoint[TRAINED] = dict(self._trained or network.state_dict())
        for key, value in self.state_of(network).items():
            checkpoint["state_dict"][prefix + key] = value

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if TRAINED not in checkpoint:
            raise CheckpointError(
                f"the checkpoint was made without an average of weights, this run has "
                f"training.ema={self.decay}: resume with training.ema=null"
            )
        self.pruning.network(pl_module).load_state_dict(checkpoint[TRAINED])

    def state_dict(self) -> dict[str, Any]:
        # Of float32 networks these are the tensors of the checkpoint's `state_dict`: written once.
        return {
            "decay": self.decay,
            "updates": self.updates,
            "frozen": self.frozen,
            "average": dict(self.average),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["decay"] != self.decay:
            raise CheckpointError(
                f"the checkpoint averaged its weights with training.ema={state_dict['decay']}, "
                f"this run has training.ema={self.decay}: resume with that of the checkpoint"
            )
        self.updates, self.frozen = state_dict["updates"], state_dict["frozen"]
        self.average = dict(state_dict["average"])

    def _prefix(self) -> str:
        return f"{self.pruning.root}." if self.pruning.root else ""
