"""Energy, latency and area per image: events that a plan implies, times what each of them costs.

Events come from the plan alone. In every phase of a layer, each of its compute crossbars is read
once per digit of the inputs: its driven rows are converted (`dac`), its cells conduct
(`array_read`), its columns in use are converted (`adc`), and each result is shifted and added
(`adder`). Partial sums of one output are added once per phase (`adder`). Input FMs are written to a
buffer once, and read once per phase for each input group that still has a crossbar (`buffer`). All
crossbars, those for reduction and buffers included, leak while the layers work one after the other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from crosspruner.errors import ConfigError
from crosspruner.hardware.axis import axes
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.mapping import ceil_div
from crosspruner.hardware.plan import Plan

QUANTITIES = {"energy": "pJ", "latency": "ns", "area": "um2"}


@dataclass(frozen=True)
class UnitCosts:
    """What one event costs. Energies in pJ, times in ns, areas in um^2, power in mW; all >= 0.

    Raises:
        ConfigError: a value is out of its range.
    """

    name: str = "none"
    """What reports call it."""
    input_bits: int = 8
    """Bits of an input, >= 1."""
    dac_bits: int = 1
    """Bits of an input that one read applies: ceil(input_bits / dac_bits) reads a phase."""
    array_read_pj: float = 0.0
    """Of one cell in one read, in use or not."""
    dac_pj: float = 0.0
    """Of driving one row in one read."""
    adc_pj: float = 0.0
    """Of converting one column in one read."""
    adder_pj: float = 0.0
    """Of one shift-and-add of a converted column, or one addition of a partial sum."""
    buffer_pj: float = 0.0
    """Of one bit written to or read from the buffer."""
    leakage_mw: float = 0.0
    """Of one crossbar with its converters, all the time."""
    read_ns: float = 0.0
    """Of one read of an array, without the conversion of its columns."""
    adc_ns: float = 0.0
    """Of one conversion; an ADC converts its columns one after the other."""
    columns_per_adc: int = 1
    """Columns that share an ADC, >= 1."""
    cell_um2: float = 0.0
    """Of one cell."""
    dac_um2: float = 0.0
    """Of the driver of one row."""
    adc_um2: float = 0.0
    """Of one ADC."""
    adder_um2: float = 0.0
    """Of the shift-and-add behind one ADC."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 1 if field.type is int else 0
            if field.name != "name" and not (math.isfinite(value) and value >= least):
                raise ConfigError(f"cost.{field.name}={value}: it must be {least} or more.")

    @property
    def reads_per_phase(self) -> int:
        """Reads that apply one input, digit by digit."""
        return ceil_div(self.input_bits, self.dac_bits)


@dataclass(frozen=True)
class CostLine:
    """One kind of event of one layer: cost = count * unit_cost, in the unit of its quantity."""

    layer: str
    quantity: str
    """energy (pJ), latency (ns) or area (um2)."""
    event: str
    count: float
    unit_cost: float

    @property
    def cost(self) -> float:
        return self.count * self.unit_cost


@dataclass(frozen=True)
class Cost:
    """What one image costs on a plan, event by event."""

    lines: tuple[CostLine, ...]

    def total(self, quantity: str) -> float:
        """Sum over all layers: energy in pJ, latency in ns, area in um^2."""
        return sum(line.cost for line in self.lines if line.quantity == quantity)

    @property
    def energy_uj(self) -> float:
        """Energy of one image, microjoule."""
        return self.total("energy") * 1e-6

    @property
    def latency_us(self) -> float:
        """From an image to its result, the layers one after the other, microseconds."""
        return self.total("latency") * 1e-3

    @property
    def interval_us(self) -> float:
        """From result to result where the layers work as a pipeline: the slowest, microseconds."""
        times = [line.cost for line in self.lines if line.quantity == "latency"]
        return max(times, default=0.0) * 1e-3

    @property
    def area_mm2(self) -> float:
        """Of all crossbars with their converters, square millimetre."""
        return self.total("area") * 1e-6

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per line, for tables and CSV."""
        return [
            {
                "layer": line.layer,
                "quantity": line.quantity,
                "event": line.event,
                "count": line.count,
                "unit_cost": line.unit_cost,
                "cost": line.cost,
                "unit": QUANTITIES[line.quantity],
            }
            for line in self.lines
        ]


def plan_cost(plan: Plan, units: UnitCosts) -> Cost:
    """Counts the events of one image and prices them.

    Args:
        plan: dense or pruned.
        units: what an event costs.

    Returns:
        The cost, a line per layer and event.

    Source: the split into array, converters, adders and buffers of ISAAC (Shafiee et al., ISCA
    2016); which events a phase of the semi-folded mapping implies is our reading.
    """
    latency = sum(_reads(layer, units) * _read_ns(layer, units) for layer in plan.layers)
    return Cost(tuple(line for layer in plan.layers for line in _lines(layer, units, latency)))


def _lines(layer: LayerPlan, units: UnitCosts, latency: float) -> Iterator[CostLine]:
    crossbar, reads = layer.crossbar, _reads(layer, units)
    columns = _columns(layer)
    conversions = columns * crossbar.cells_per_weight * reads
    cells = crossbar.rows * crossbar.cols
    energy = {
        "array_read": (layer.compute_crossbars * cells * reads, units.array_read_pj),
        "dac": (_rows(layer, shared=False) * reads, units.dac_pj),
        "adc": (conversions, units.adc_pj),
        "adder": (conversions + _additions(layer, columns) * layer.phases, units.adder_pj),
        "buffer": (_buffer_bits(layer, units), units.buffer_pj),
        "leakage": (layer.total_crossbars * latency, units.leakage_mw),
    }
    adcs = layer.total_crossbars * ceil_div(crossbar.cols, units.columns_per_adc)
    area = {
        "array": (layer.total_crossbars * cells, units.cell_um2),
        "dac": (layer.total_crossbars * crossbar.rows, units.dac_um2),
        "adc": (adcs, units.adc_um2),
        "adder": (adcs, units.adder_um2),
    }
    for event, (count, unit_cost) in energy.items():
        yield CostLine(layer.name, "energy", event, count, unit_cost)
    yield CostLine(layer.name, "latency", "read", reads, _read_ns(layer, units))
    for event, (count, unit_cost) in area.items():
        yield CostLine(layer.name, "area", event, count, unit_cost)


def _reads(layer: LayerPlan, units: UnitCosts) -> int:
    """Reads of each of the layer's compute crossbars per image."""
    return layer.phases * units.reads_per_phase


def _read_ns(layer: LayerPlan, units: UnitCosts) -> float:
    """One read: the array settles, then each ADC converts its share of the columns in use."""
    window = math.prod(layer.tiling.window)
    used = layer.kout * layer.bundle * window * layer.crossbar.cells_per_weight
    adcs = ceil_div(layer.crossbar.cols, units.columns_per_adc)
    return units.read_ns + ceil_div(used, adcs) * units.adc_ns


def _columns(layer: LayerPlan) -> int:
    """Columns in use of all compute crossbars, in weights."""
    held = int((layer.packing.block_outputs >= 0).sum())
    return held * _outputs_at_once(layer) * layer.row_splits


def _outputs_at_once(layer: LayerPlan) -> int:
    """Output positions that all slices of an output FM compute in a phase.

    The last slice's window may reach past the FM: it has no columns for what is not there.
    """
    high, wide = layer.geometry.out_size
    return {"folded": 1, "semifolded": wide, "unfolded": high * wide}[layer.tiling.mapping]


def _rows(layer: LayerPlan, shared: bool) -> int:
    """Driven rows of all compute crossbars; shared: once for all crossbars of an input group.

    Rows under a window that hold no weight (stride gaps, what is past the FM) are not driven.
    """
    owner = layer.packing.block_input
    owner = owner.unique() if shared else owner
    fms = int((layer.input_table[owner] >= 0).sum())
    down, across = (
        int((axis.taps < kernel).any(3).sum())
        for axis, kernel in zip(
            axes(layer.geometry, layer.tiling), layer.geometry.kernel, strict=True
        )
    )
    return fms * down * across


def _additions(layer: LayerPlan, columns: int) -> int:
    """Additions of partial sums per phase: one fewer than the sums of each output that has any."""
    outputs = layer.packing.block_outputs
    outputs = outputs[outputs >= 0].unique()
    return columns - len(outputs) * _outputs_at_once(layer)


def _buffer_bits(layer: LayerPlan, units: UnitCosts) -> int:
    """Bits of input FMs written once and of rows read in every phase."""
    geometry = layer.geometry
    written = geometry.in_channels * math.prod(geometry.in_size) * geometry.calls
    read = _rows(layer, shared=True) * layer.phases
    return (written + read) * units.input_bits
