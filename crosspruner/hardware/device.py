"""What a real cell array does to a weight and to a column sum: the parameters of a device."""

import math
from dataclasses import dataclass, replace
from numbers import Real

from crosspruner.errors import ConfigError

SCALES = ("layer", "column")
WEIGHT_RANGES = ("max", "mse")
ADC_RANGES = ("full", "calibrated")
PLACEMENTS = ("none", "columns", "both")

_AMOUNTS = ("lognormal", "gaussian", "read_noise", "wire_ohms", "drift", "drift_spread")
_NUMBERS = (*_AMOUNTS, "stuck_off", "stuck_on", "on_ohms", "drift_time")


@dataclass(frozen=True)
class Device:
    """A device, its cells and its converters. Every default is the ideal one: no effect at all.

    Conductances are in units of a fully-on cell, `rates` are probabilities per cell. How many cells
    a weight has, and whether a pair of columns holds its sign, is the crossbar's to say
    (`cell_bits`, `differential`).

    Raises:
        ConfigError: a value is out of its range.

    Source: w * exp(theta), theta ~ N(0, sigma^2), is the variation of Liang et al., IEEE Access
    2018; the others are the usual first-order models, each named where it is computed.
    """

    name: str = "ideal"
    """What reports call it."""
    weight_bits: int | None = None
    """Bits of a stored weight, sign included, >= 2; None = any value can be stored."""
    weight_scale: str = "layer"
    """What shares a full-scale weight: `layer`, or `column` (one column of one crossbar)."""
    weight_range: str = "max"
    """The full-scale weight: `max` = the largest; `mse` = the one of least squared error, larger
    weights are clipped to it. The same where weights are not quantised."""
    on_off: float | None = None
    """Conductance of a fully-on cell over that of an off cell, > 1; None = an off cell is open."""
    input_bits: int | None = None
    """Bits of an input, one of them the sign unless all are >= 0; None = any value."""
    dac_bits: int | None = None
    """Bits of an input that one read applies, >= 1; None = all of them at once."""
    adc_bits: int | None = None
    """Bits of the converter that reads a column, >= 1; None = exact."""
    adc_range: str = "calibrated"
    """`full`: the largest sum a column can reach, all cells fully on and all rows driven by the
    most that a read applies (without `input_bits`: by the largest input of the layer's call);
    `calibrated`: the largest that a crossbar showed on calibration images, larger ones clip."""
    lognormal: float = 0.0
    """Standard deviation of theta: a cell's conductance is multiplied by exp(theta). >= 0."""
    gaussian: float = 0.0
    """Standard deviation of what is added to a cell's conductance, as a fraction of its range."""
    read_noise: float = 0.0
    """The same, drawn anew at each read."""
    stuck_off: float = 0.0
    """Share of the cells that cannot leave the off state, 0-1."""
    stuck_on: float = 0.0
    """Share of the cells that cannot leave the fully-on state, 0-1."""
    placement: str = "none"
    """Where columns go in a crossbar of which the faulty cells are known: `none` = as planned,
    `columns` = where they are hurt least, `both` = rows as well."""
    compensate: bool = False
    """Program the healthy cell of a differential pair for what its stuck partner does."""
    wire_ohms: float = 0.0
    """Resistance of the wire between two neighbouring cells, >= 0 ohm."""
    on_ohms: float = 1e4
    """Resistance of a fully-on cell, > 0 ohm. Only wire resistance looks at it."""
    drift: float = 0.0
    """Mean exponent nu of the drift G(t) = G(1) * t^-nu, >= 0."""
    drift_spread: float = 0.0
    """Standard deviation of nu from cell to cell, >= 0."""
    drift_time: float = 1.0
    """t: time since programming over the time at which the conductance was verified, >= 1."""
    drift_compensated: bool = False
    """Multiply what is read by t^nu, nu the mean: global drift compensation."""

    def __post_init__(self) -> None:
        for field in ("weight_bits", "input_bits", "dac_bits", "adc_bits"):
            value, least = getattr(self, field), 2 if field == "weight_bits" else 1
            if value is not None and not (isinstance(value, int) and least <= value <= 24):
                raise ConfigError(
                    f"device.{field}={value}: give {least} to 24 bits, or null for exact."
                )
        for field in (*_NUMBERS, *(() if self.on_off is None else ("on_off",))):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ConfigError(f"device.{field}={value!r} is no number: give one.")
        for field in _AMOUNTS:
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"device.{field}={value}: it must be 0 or more.")
        if min(self.stuck_off, self.stuck_on) < 0 or self.stuck_off + self.stuck_on > 1:
            raise ConfigError(
                f"device.stuck_off={self.stuck_off}, device.stuck_on={self.stuck_on}: they are "
                "shares of the cells, 0 or more each and at most 1 together."
            )
        if self.on_off is not None and not self.on_off > 1:
            raise ConfigError(f"device.on_off={self.on_off}: give a ratio above 1, or null.")
        if not self.on_ohms > 0 or not self.drift_time >= 1:
            raise ConfigError(
                f"device.on_ohms={self.on_ohms} must be above 0, and "
                f"device.drift_time={self.drift_time} 1 or more."
            )
        if self.dac_bits is not None and self.input_bits is None:
            raise ConfigError(
                f"device.dac_bits={self.dac_bits} applies inputs digit by digit: give "
                "device.input_bits as well."
            )
        for field, allowed in (
            ("weight_scale", SCALES),
            ("weight_range", WEIGHT_RANGES),
            ("adc_range", ADC_RANGES),
            ("placement", PLACEMENTS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ConfigError(f"device.{field}={value}: choose one of {', '.join(allowed)}.")

    @property
    def changes_weights(self) -> bool:
        """Whether a weight may differ from what was asked for."""
        return self.weight_bits is not None or self.is_random or self.drifts

    @property
    def is_random(self) -> bool:
        """Whether two chips differ."""
        spreads = self.drift_spread > 0 and self.drift_time > 1
        return self.lognormal > 0 or self.gaussian > 0 or self.has_faults or spreads

    @property
    def has_faults(self) -> bool:
        """Whether some cells are stuck."""
        return self.stuck_off > 0 or self.stuck_on > 0

    @property
    def drifts(self) -> bool:
        """Whether conductances have changed since they were programmed."""
        return self.drift_time > 1 and (self.drift > 0 or self.drift_spread > 0)

    @property
    def needs_arrays(self) -> bool:
        """Whether an effect depends on a whole array at work, so that no weight stands for it."""
        return self.adc_bits is not None or self.read_noise > 0 or self.wire_ohms > 0

    @property
    def on_weights(self) -> "Device":
        """The same device without what acts on whole arrays or on inputs."""
        return replace(
            self, adc_bits=None, read_noise=0.0, wire_ohms=0.0, input_bits=None, dac_bits=None
        )

    @property
    def nominal(self) -> "Device":
        """The same device without what is left to chance: every chip as it should be."""
        return replace(
            self, lognormal=0.0, gaussian=0.0, read_noise=0.0, stuck_off=0.0, stuck_on=0.0,
            placement="none", compensate=False, drift_spread=0.0,
        )  # fmt: skip

    @property
    def is_ideal(self) -> bool:
        """Whether nothing differs from exact arithmetic."""
        return not (self.changes_weights or self.needs_arrays or self.input_bits is not None)

    @property
    def counts_levels(self) -> bool:
        """Whether column sums are whole numbers, so that an ADC needs no finer step than 1."""
        whole = self.weight_bits is not None and self.input_bits is not None
        disturbed = self.is_random or self.drifts or self.read_noise > 0 or self.wire_ohms > 0
        return whole and not disturbed and self.on_off is None

    @property
    def floor(self) -> float:
        """Conductance of an off cell, as a fraction of the range between off and fully on."""
        return 0.0 if self.on_off is None else 1 / (self.on_off - 1)
