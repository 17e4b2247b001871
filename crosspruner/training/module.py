"""The LightningModule: a plain network, its loss, its metrics, its optimizer."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from crosspruner.errors import CheckpointError, ConfigError
from crosspruner.training.average import TRAINED, WeightAverage
from crosspruner.training.data.mixing import Mixing
from crosspruner.training.data.randomness import Stream, mixed_seed
from crosspruner.training.soft_targets import soft_target_losses

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    """Trains a network to classify, and measures loss and accuracy on every split.

    The network sits under `net`: its keys in a checkpoint are its own with "net." before them, and
    `classifier.net.state_dict()` loads into the plain network. Checkpoints hold tensors and plain
    Python only (they load with weights_only=True).

    Logs per epoch train/loss train/acc val/loss val/acc test/loss test/acc: means over images, not
    over batches, and over all processes.

    Args:
        net: images (B, C, H, W) -> logits (B, num_classes).
        optimizer: called with the parameter groups, gives the optimizer.
        scheduler: called with (optimizer, total_steps=number of optimizer steps of the whole fit),
            gives a scheduler that is stepped after each of them; None keeps the learning rate.
        label_smoothing: in [0, 1), of the training loss; validation and test loss have none.
        decay_norm_and_bias: let the optimizer's weight decay also shrink biases and the scales and
            shifts of normalisation layers. False (the usual choice) leaves these alone.
        channels_last: keep images and weights in channels-last memory: faster convolutions on GPUs
            and on CPUs in bfloat16, the same numbers up to rounding.
        seed: >= 0; draws inside the network (dropout) then depend on (seed, epoch, process) only,
            and those of mixup and cutmix on the batch as well, so that a resumed run repeats them.
            None leaves the global generator alone.
        mixing: mixup and cutmix of the training batches; train/acc then counts the class that has
            the larger share of an image. None = neither.
        distill: in [0, 1], w of the training loss (1 - w) CE + w T^2 KL(teacher || network), while
            there is a teacher (`learn_from`).
        temperature: T of it, above 0.
        compile: run the network, and the teacher, through torch.compile; `net` itself stays as it
            is.
        compile_backend: of torch.compile.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        label_smoothing: float = 0.0,
        decay_norm_and_bias: bool = False,
        channels_last: bool = True,
        seed: int | None = None,
        mixing: Mixing | None = None,
        distill: float = 0.0,
        temperature: float = 4.0,
        compile: bool = False,
        compile_backend: str = "inductor",
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing={label_smoothing} given: it must be in [0, 1).")
        if not 0.0 <= distill <= 1.0 or not temperature > 0:
            raise ConfigError(
                f"distill={distill}, temperature={temperature} given: the first must be in [0, 1], "
                "the second above 0."
            )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.label_smoothing = label_smoothing
        self.decay_norm_and_bias = decay_norm_and_bias
        self.seed = seed
        self.mixing = mixing
        self.distill = distill
        self.temperature = temperature
        self.teacher: Callable[[Tensor], Tensor] | None = None
        if compile:
            backends = torch._dynamo.list_backends(exclude_tags=())  # type: ignore[attr-defined]
            if compile_backend not in backends:
                raise ConfigError(
                    f"compile_backend={compile_backend} given: it must be one of "
                    f"{', '.join(backends)}."
                )
        self._compiler = partial(torch.compile, backend=compile_backend) if compile else None
        # In a list it is no submodule: keys and names stay those of the plain network.
        self._compiled = [self._compiler(self.net)] if self._compiler else []
        self._logged: int | None = None  # the epoch whose training metrics Lightning knows
        # "disable" drops nothing: a loss that is not a number must show as such
        self.means = nn.ModuleDict(
            {
                f"{stage}_{name}": MeanMetric(nan_strategy="disable")
                for stage in ("train", "val", "test")
                for name in ("loss", "acc")
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> logits (B, num_classes)."""
        network = self._compiled[0] if self._compiled else self.net
        return network(images.contiguous(memory_format=self.memory_format))

    def learn_from(self, teacher: nn.Module | None) -> None:
        """Compare the logits with a teacher's from the next training step on; None = no longer.

        Args:
            teacher: images -> logits, without gradients; on the device and in the memory format of
                `net`. It is no submodule: checkpoints do not hold it.
        """
        if teacher is None:
            self.teacher = None
            return
        says = self._compiler(teacher) if self._compiler else teacher

        @torch.no_grad()
        def teach(images: Tensor) -> Tensor:
            return says(images.contiguous(memory_format=self.memory_format))

        self.teacher = teach

    def setup(self, stage: str) -> None:
        self._logged = None

    def on_train_epoch_start(self) -> None:
        if self.seed is not None:
            key = (self.seed, self.current_epoch, self.global_rank)
            torch.manual_seed(mixed_seed(Stream.NETWORK, *key))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        if self.mixing is not None:
            key = (self.current_epoch, batch_idx, self.global_rank)
            images, labels = self.mixing(
                images, labels, None if self.seed is None else (self.seed, *key)
            )
        logits = self(images)
        losses = cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.teacher is not None:
            taught = soft_target_losses(logits, self.teacher(images), self.temperature)
            losses = (1 - self.distill) * losses + self.distill * taught
        classes = labels if labels.dim() == 1 else labels.argmax(dim=1)
        self._note("train", losses, logits, classes)
        return losses.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        images, labels = batch
        logits = self(images)
        self._note(stage, cross_entropy(logits, labels, reduction="none"), logits, labels)

    def _note(self, stage: str, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        hits = (logits.detach().argmax(dim=1) == labels).float()
        # per image, so that an incomplete batch counts for what it holds
        for name, values in [("loss", losses.detach()), ("acc", hits)]:
            mean = cast(MeanMetric, self.means[f"{stage}_{name}"])
            mean.update(values)
            # The mean itself is logged, and goes on counting: once an epoch is enough, and each
            # further time costs a small network's step on a GPU a tenth of what it takes.
            if stage != "train" or self._logged != self.current_epoch:
                self.log(f"{stage}/{name}", mean, on_step=False, on_epoch=True, prog_bar=True)
        if stage == "train":
            self._logged = self.current_epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainer = self._trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING or TRAINED not in checkpoint:
            return
        if not any(isinstance(c, WeightAverage) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise CheckpointError(
                "the checkpoint holds an average of weights (training.ema), this run averages "
                "none: resume with the training.ema of that run"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.parameter_groups())
        if self.make_scheduler is None:
            return optimizer
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise ConfigError(
                "The learning-rate schedule needs an end: set trainer.max_epochs or "
                "trainer.max_steps, or train without a scheduler."
            )
        scheduler = self.make_scheduler(optimizer, total_steps=int(total_steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters with weight decay, and those without: biases, scales and shifts (1-D)."""
        trained = [p for p in self.net.parameters() if p.requires_grad]
        if self.decay_norm_and_bias:
            return [{"params": trained}]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]
