"""DeviceNoise: the Lightning callback that trains a network on the chip it will run on."""

from collections import deque
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from crosspruner.hardware import Device
from crosspruner.hardware.effective import DeviceWeights, layers_on_device, weight_name
from crosspruner.pruning.batch_norm import reestimate_all
from crosspruner.pruning.calibration import images_of
from crosspruner.pruning.pruning_callback import PruningCallback
from crosspruner.pruning.schedule import Phase

# Training batches on which batch norms are measured.
_NORM_BATCHES = 8

# Chips of one seed of the callback: steps and batches draw among these.
_CHIPS = 1 << 32


class DeviceNoise(pl.Callback):
    """Each training batch runs on another chip of the device: noise-aware fine-tuning.

    The weights are replaced by what a chip makes of them before the forward pass and put back after
    the backward pass; the gradient there is taken for the weights themselves (straight through).
    Only what acts on weights is put in (quantisation, variation, faults, drift), one draw for all
    copies of a weight. Validation, checkpoints and the optimizer see the weights as they are. The
    chip depends on the seed and the step only, so that a resumed run goes on alike.

    Running batch-norm statistics would follow the last few chips. Before each validation, or at the
    end of an epoch without one, they are measured anew on the epoch's last training images, with
    the weights as a chip without random errors has them (quantised, say); those suit all chips.

    Args:
        device: the device.
        pruning: the callback that says what is pruned, and when fine-tuning begins. Where nothing
            is pruned (ratio 0), all training counts as fine-tuning.
        seed: of the chips; none of those that evaluation looks at (0, 1, ...).

    Source: noise injection in the forward pass, e.g. Joshi et al., Nature Communications 2020.
    """

    def __init__(self, device: Device, pruning: PruningCallback, seed: int = 0) -> None:
        self.device = device.on_weights
        self.pruning = pruning
        self.seed = seed
        self._layers: dict[str, DeviceWeights] = {}
        self._clean: dict[str, Tensor] = {}
        self._images: deque[Tensor] = deque(maxlen=_NORM_BATCHES)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.device.changes_weights or not self._due(trainer.global_step):
            return
        chip = (self.seed + 1) * _CHIPS + trainer.global_step * 4096 + batch_idx % 4096
        self._images.append(images_of(batch).detach())
        self._disturb(pl_module, self.device, chip)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore(pl_module)

    # A step that gives no loss has no backward pass: what comes next must meet the weights as they
    # are, be it the optimizer (of gradients accumulated before), the batch's end or the next chip.

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self._restore(pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._restore(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure_norms(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure_norms(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._restore(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._layers = {}

    def _due(self, step: int) -> bool:
        fine_tuning = self.pruning.frozen and self.pruning.phase_at(step) is Phase.FINETUNE
        return fine_tuning or self.pruning.ratio == 0

    def _measure_norms(self, pl_module: pl.LightningModule) -> None:
        if self._images:
            network = pl_module.get_submodule(self.pruning.root)
            self._disturb(pl_module, self.device.nominal, 0)
            with torch.no_grad():
                reestimate_all(network, list(self._images))
            self._restore(pl_module)
        self._images.clear()

    def _disturb(self, pl_module: pl.LightningModule, device: Device, chip: int) -> None:
        self._restore(pl_module)
        network = pl_module.get_submodule(self.pruning.root)
        keys = network.state_dict().keys()
        if not self._layers:
            self._layers = layers_on_device(self.pruning.plan, network, self.device)
        with torch.no_grad():
            for name, layer in self._layers.items():
                weight = network.get_parameter(weight_name(name, keys))
                self._clean[name] = weight.detach().clone()
                weight.copy_(layer.on(device, [chip])[0])

    def _restore(self, pl_module: pl.LightningModule) -> None:
        if not self._clean:
            return
        network = pl_module.get_submodule(self.pruning.root)
        keys = network.state_dict().keys()
        with torch.no_grad():
            for name, clean in self._clean.items():
                network.get_parameter(weight_name(name, keys)).copy_(clean)
        self._clean = {}
