"""What a user may choose about the mapping."""

from dataclasses import dataclass, field

from crosspruner.errors import ConfigError
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.geometry import LayerGeometry

MAPPINGS = ("folded", "semifolded", "unfolded")
KERNEL_ROWS = ("all", "one")
GROUPED = ("apart", "block_diagonal")
PRESETS = ("liang2018",)


@dataclass(frozen=True)
class MappingSpec:
    """A mapping and the choices that a user may fix in it.

    Raises:
        ConfigError: a name, a choice or a number is not allowed.
    """

    name: str = "semifolded"
    """folded, semifolded or unfolded."""
    kernel_rows: str = "all"
    """Semi-folded and unfolded only. `all`: a crossbar sees all kernel rows at once. `one`: each
    kernel row has crossbars of its own, whose outputs are added up."""
    kin: int | None = None
    """Input FMs per crossbar, for every layer; None chooses per layer. Clipped to the layer."""
    kout: int | None = None
    """Output FMs per crossbar, for every layer; None chooses per layer. Clipped to the layer."""
    layers: dict[str, dict[str, int]] | None = field(default=None, hash=False)
    """{layer name: {"kin": .., "kout": ..}}: wins over `kin` and `kout`. On the command line
    'mapping.layers={features.3:{kin:16}}'."""
    applies_to: str = "all"
    """`all` or `conv`: the layers that the model-wide `kin` and `kout` hold for."""
    differential: bool | None = None
    """True or False overrides the crossbar's `differential`; None keeps it."""
    grouped: str = "apart"
    """Grouped and depthwise convolutions. `apart`: a crossbar holds (part of) one conv group.
    `block_diagonal`: as many whole conv groups as fit stand on the diagonal of one crossbar; their
    number divides the conv groups."""
    tokens: int = 1
    """Semi-folded and unfolded: positions of a sequence that a linear layer handles at once, on
    that many copies of its weights. 1: one after the other, as the design has it."""
    heads: str = "ignored"
    """`respected`: an output group never crosses the border between two attention heads in a fused
    query-key-value projection. `ignored`: it never crosses from one of the three matrices to the
    next, but heads may share a crossbar."""

    def __post_init__(self) -> None:
        _choice("mapping", self.name, MAPPINGS)
        _choice("mapping.kernel_rows", self.kernel_rows, KERNEL_ROWS)
        _choice("mapping.applies_to", self.applies_to, ("all", "conv"))
        _choice("mapping.grouped", self.grouped, GROUPED)
        _choice("mapping.heads", self.heads, ("ignored", "respected"))
        _positive("mapping.tokens", self.tokens)
        _positive("mapping.kin", self.kin)
        _positive("mapping.kout", self.kout)
        layers = {}
        for name, given in (self.layers or {}).items():
            if unknown := set(given) - {"kin", "kout"}:
                raise ConfigError(
                    f"mapping.layers: {name} has {sorted(unknown)}: only kin and kout are allowed."
                )
            for key, value in given.items():
                _positive(f"mapping.layers: {name}.{key}", value)
            layers[str(name)] = dict(given)
        object.__setattr__(self, "layers", layers)

    @classmethod
    def of(cls, mapping: "str | MappingSpec") -> "MappingSpec":
        """Turns a mapping's name, or the preset "liang2018", into a spec.

        liang2018 is semi-folded with one kernel row per crossbar, Kout 4 in convolutions and
        differential columns. On 256x256 it gives Kin 8 for FMs 32 wide and Kin 16 for 16 wide, the
        figures of the paper. That linear layers fill their crossbars instead is our reading.

        Raises:
            ConfigError: the name is unknown.

        Source: Liang et al., IEEE Access 2018 (figures); our reading of how they come about.
        """
        if isinstance(mapping, MappingSpec):
            return mapping
        if mapping == "liang2018":
            return cls("semifolded", "one", kout=4, applies_to="conv", differential=True)
        _choice("mapping", mapping, (*MAPPINGS, *PRESETS))
        return cls(mapping)

    def crossbar(self, crossbar: Crossbar) -> Crossbar:
        """The crossbar with this mapping's `differential`, where it sets one."""
        if self.differential is None or self.differential == crossbar.differential:
            return crossbar
        return Crossbar(
            crossbar.rows,
            crossbar.cols,
            crossbar.weight_bits,
            crossbar.cell_bits,
            self.differential,
        )

    def given(self, geometry: LayerGeometry) -> tuple[int | None, int | None]:
        """Kin and Kout that the user fixed for this layer, clipped to its FMs; None = choose."""
        kin, kout = self.typed(geometry).values()
        return (
            None if kin is None else min(kin, geometry.group_inputs),
            None if kout is None else min(kout, geometry.group_outputs // geometry.sections),
        )

    def typed(self, geometry: LayerGeometry) -> dict[str, int | None]:
        """Kin and Kout of this layer as the user gave them; None = choose."""
        whole = self.applies_to == "all" or geometry.kind == "conv"
        own = (self.layers or {}).get(geometry.name, {})
        return {
            "kin": own.get("kin", self.kin if whole else None),
            "kout": own.get("kout", self.kout if whole else None),
        }


def _choice(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value}: choose one of {', '.join(allowed)}.")


def _positive(key: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value!r}: it must be a whole number of at least 1, or null.")
