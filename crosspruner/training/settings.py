"""Switches of training that have nothing to do with crossbars, in one place."""

from dataclasses import dataclass

from crosspruner.errors import ConfigError


@dataclass(frozen=True)
class TrainingSettings:
    """How the network is trained, whatever is pruned.

    Args:
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        mixup: alpha of mixup, >= 0; 0 = off. Two images of a batch are averaged with a weight drawn
            from Beta(alpha, alpha).
        cutmix: alpha of cutmix, >= 0; 0 = off. A box of one image is put into another. With mixup
            and cutmix both on, each batch gets one of them.
        mix_share: share of the batches that are mixed at all, in (0, 1].
        ema: decay of a moving average of the weights, in (0, 1), for example 0.999; None = off. The
            average is what is validated, chosen and saved.
        distill_temperature: > 0; softens what the dense network says, where `distill` is above 0.
        channels_last: keep images and weights in channels-last memory.
        compile: run the network through torch.compile.
        compile_backend: of torch.compile.

    Raises:
        ConfigError: a value is out of its range.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_share: float = 1.0
    ema: float | None = None
    distill_temperature: float = 4.0
    channels_last: bool = True
    compile: bool = False
    compile_backend: str = "inductor"

    def __post_init__(self) -> None:
        for key, fits, allowed in (
            ("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 (off) to below 1"),
            ("mixup", self.mixup >= 0, "alpha, 0 (off) or more, for example 0.2"),
            ("cutmix", self.cutmix >= 0, "alpha, 0 (off) or more, for example 1.0"),
            ("mix_share", 0 < self.mix_share <= 1, "a share of the batches, above 0 to 1"),
            ("ema", self.ema is None or 0 < self.ema < 1, "a decay between 0 and 1, for example "
                                                          "0.999, or null (off)"),
            ("distill_temperature", self.distill_temperature > 0, "a number above 0"),
        ):  # fmt: skip
            if not fits:
                raise ConfigError(
                    f"training.{key}={getattr(self, key)} is out of range: give {allowed}"
                )
