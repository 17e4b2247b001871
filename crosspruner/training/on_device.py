"""A trained network judged as chips of a device would compute it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import Device, Plan, chip_accuracy, needs_arrays
from crosspruner.hardware.chips import COPIES
from crosspruner.training.data.base import ImageData


@dataclass(frozen=True)
class DeviceSettings(Device):
    """A device, and how a run looks at it.

    Raises:
        ConfigError: a value is out of its range.
    """

    seeds: int = 5
    """Chips to judge, >= 1: seeds 0, 1, ..."""
    images: int | None = None
    """Test images each chip sees, drawn once for all, >= 1; None = all."""
    array_images: int = 128
    """The same where every crossbar must be computed by itself, which takes long."""
    calibration_images: int = 64
    """Training images that set the range of the ADCs, >= 1."""
    norm_images: int = 0
    """Training images, augmented as in training, on which each chip measures its batch norms anew,
    all in one batch; 0 = the network's own statistics."""
    copies: str = "one"
    """`one` draw for all copies of a weight, or each its `own` (slow): see `chip_accuracy`."""
    train: bool = False
    """Put the device's errors into the weights while fine-tuning: noise-aware training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("seeds", "images", "array_images", "calibration_images"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(f"device.{field}={value}: it must be at least 1.")
        if self.norm_images < 0:
            raise ConfigError(f"device.norm_images={self.norm_images}: it must be 0 or more.")
        if self.copies not in COPIES:
            raise ConfigError(f"device.copies={self.copies}: choose one of {', '.join(COPIES)}.")


def images_seen(plan: Plan, network: nn.Module, settings: DeviceSettings) -> int | None:
    """Test images that each chip sees, by the way in which it is computed; None = all."""
    by_array = needs_arrays(plan, network, settings, settings.copies)
    return settings.array_images if by_array else settings.images


def accuracy_on_device(
    plan: Plan,
    network: nn.Module,
    data: ImageData,
    settings: DeviceSettings,
    bfloat16: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """Test accuracy on each of the device's chips.

    Args:
        plan: of the network, dense or pruned.
        network: on the CPU; it is left as it was.
        data: its test and calibration images.
        settings: the device, and on how many chips and images it is judged.
        bfloat16: see `chip_accuracy`.
        advance: called after each chip.

    Returns:
        (seeds,) float64, 0-1.
    """
    norm_images = None
    if settings.norm_images:
        batches = data.calibration_batches(settings.norm_images, augmented=True)
        norm_images = torch.cat([x for x, _ in batches])
    return chip_accuracy(
        plan,
        network,
        settings,
        range(settings.seeds),
        list(data.test_batches(images_seen(plan, network, settings))),
        [x for x, _ in data.calibration_batches(settings.calibration_images)],
        settings.copies,
        bfloat16,
        advance,
        norm_images,
    )
