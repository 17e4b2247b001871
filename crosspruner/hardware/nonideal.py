"""A layer on real crossbars: each array with the cells, wires and converters of one chip.

weights -> levels -> conductances (variation, drift, faults) -> wires -> column currents, read by
read (inputs digit by digit, read noise, ADC) -> weighted sum
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from crosspruner.errors import PlanError
from crosspruner.hardware import full_scale
from crosspruner.hardware.cell_map import cell_number
from crosspruner.hardware.cells import Stored, check_cells, conductances, store
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.device import Device
from crosspruner.hardware.execute import execute_layer
from crosspruner.hardware.geometry import LayerGeometry
from crosspruner.hardware.integer import input_digits, quantise
from crosspruner.hardware.ir_drop import seen_conductance
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.placement import Placement, place_layer
from crosspruner.hardware.plan import Plan
from crosspruner.hardware.simulate import simulate


class OnDevice:
    """How the crossbars of one chip compute a layer: `simulate(plan, model, x, this)`.

    Every cell of every crossbar has its own variation and faults: each banded copy and slice of a
    kernel, and the cells of the band that hold no weight. They depend on (seed, layer, crossbar,
    row, column) only. With an ideal device the result is that of `simulate` bit for bit.

    Args:
        device: the device.
        seed: of the chip, and of the read noise.
    """

    def __init__(self, device: Device, seed: int = 0) -> None:
        self.device = device
        self.seed = seed
        self.ranges: dict[str, Tensor] = {}
        """Layer -> (crossbars,) the largest column current of each, in levels."""
        self._calibrating = False
        self._placements: dict[str, Placement] = {}
        self._noise = torch.Generator().manual_seed(seed)

    def calibrate(self, plan: Plan, model: nn.Module, batches: Iterable[Tensor]) -> None:
        """Sets the range of every crossbar's ADC to the largest current that it reads.

        Args:
            plan: as for `simulate`.
            model: likewise.
            batches: images (batch, *input_shape) like those to come.
        """
        self.ranges.clear()
        self._calibrating = True
        try:
            for x in batches:
                simulate(plan, model, x, self)
        finally:
            self._calibrating = False

    def __call__(
        self, layer: LayerPlan, x: Tensor, weight: Tensor, geometry: LayerGeometry
    ) -> Tensor:
        """Computes one layer; an `Execute`, see `simulate`.

        Raises:
            ConfigError: the device does not fit the crossbar's cells.
            PlanError: an ADC of calibrated range was not calibrated.
        """
        device, crossbar = self.device, layer.crossbar
        if device.is_ideal:
            return execute_layer(layer, x, weight, geometry=geometry)
        check_cells(device, crossbar)
        inputs, input_scale = x, 1.0
        if device.input_bits is None:
            largest = float(x.abs().max()) if x.numel() else 0.0
        else:
            signed = bool((x < 0).any())
            whole, input_scale = quantise(x, device.input_bits, signed)
            inputs, largest = whole.to(x.dtype), 2.0 ** (device.input_bits - signed) - 1
        scale = full_scale.of_crossbars(layer, weight, device)
        places = self._places(layer, weight)

        def product(driven: Tensor, cells: Tensor, number: Tensor) -> Tensor:
            stored = store(cells, scale(cells), device, crossbar)
            row, column = places(number, *cells.shape[1:])
            cell = cell_number(crossbar, number[:, None, None], row[:, :, None], column[:, None, :])
            cell = cell[: len(stored.levels)]
            held = conductances(stored, device, self.seed, layer.name, cell)
            if device.wire_ohms:
                held = self._wired(stored, crossbar, held, row, column)
            if device.adc_bits is None and not device.read_noise:
                return torch.bmm(driven, stored.weights(held, stored.most * device.floor))
            return self._read(layer, stored, held, driven, number, largest)

        return execute_layer(layer, inputs, weight, product, geometry) * input_scale

    def _places(
        self, layer: LayerPlan, weight: Tensor
    ) -> Callable[[Tensor, int, int], tuple[Tensor, Tensor]]:
        """Physical (n, rows) and (n, columns) of the planned ones, for given crossbars."""
        if self.device.placement == "none" or not self.device.has_faults:
            return lambda number, rows, columns: (
                torch.arange(rows, device=number.device).expand(len(number), -1),
                torch.arange(columns, device=number.device).expand(len(number), -1),
            )
        if layer.name not in self._placements:
            self._placements[layer.name] = place_layer(layer, weight, self.device, self.seed)
        known = self._placements[layer.name]
        return lambda number, rows, columns: (
            known.rows[number, :rows],
            known.columns[number, :columns],
        )

    def _wired(
        self, stored: Stored, crossbar: Crossbar, held: Tensor, row: Tensor, column: Tensor
    ) -> Tensor:
        """The conductances that the wires let through; unused cells of the array are off."""
        share = 1 / (stored.most * (1 + self.device.floor) * self.device.on_ohms)
        off = stored.most * self.device.floor
        array = held.new_full((len(row), crossbar.rows, crossbar.cols), off)
        crossbars = torch.arange(len(row), device=row.device)[:, None, None]
        first = column[:, None, :] * crossbar.cells_per_weight
        at = [(crossbars, row[:, :, None], first + i) for i in range(len(held))]
        for place, plane in zip(at, held, strict=True):
            array[place] = plane
        seen = seen_conductance(array * share, self.device.wire_ohms) / share
        return torch.stack([seen[place] for place in at])

    def _read(
        self,
        layer: LayerPlan,
        stored: Stored,
        held: Tensor,
        driven: Tensor,
        number: Tensor,
        largest: float,
    ) -> Tensor:
        """Reads every column, digit by digit of the inputs, and adds up what the cells count.

        Args:
            layer: the layer's plan.
            stored: what the cells were asked to hold.
            held: (cells per weight, n, rows, columns) conductances, in levels.
            driven: (n, phases, rows) inputs, whole numbers where they are quantised.
            number: (n,) of the crossbars.
            largest: magnitude that an input of this call can have, the same for all crossbars.
        """
        off = stored.most * self.device.floor
        total = driven.new_zeros(*driven.shape[:2], held.shape[3])
        for digit_worth, digit, drive in self._digits(driven, largest):
            without = off * digit.sum(2, keepdim=True)  # what off cells let through
            for worth, plane in zip(stored.worth, held, strict=True):
                current = torch.bmm(digit, plane)
                if self.device.read_noise:
                    spread = self.device.read_noise * stored.most * digit.norm(dim=2, keepdim=True)
                    current = current + spread * torch.randn(
                        current.shape, generator=self._noise, dtype=current.dtype
                    )
                current = self._converted(layer, stored, current, drive, number)
                total += digit_worth * worth * (current - without)
        if stored.shift:
            total -= stored.shift * driven.sum(2, keepdim=True)
        return total * stored.unit

    def _digits(self, driven: Tensor, largest: float) -> Iterator[tuple[int, Tensor, float]]:
        """What each read applies, what that is worth, and the most that a read can apply."""
        if self.device.input_bits is None:
            yield 1, driven.clamp(min=0), largest
            if bool((driven < 0).any()):  # negative inputs are applied apart
                yield -1, (-driven).clamp(min=0), largest
            return
        bits = int(largest).bit_length()  # the sign takes none: negative inputs are applied apart
        at_once = min(self.device.dac_bits or bits, bits)
        for worth, digit in input_digits(driven, bits, at_once):
            yield worth, digit, 2.0**at_once - 1

    def _converted(
        self, layer: LayerPlan, stored: Stored, current: Tensor, drive: float, number: Tensor
    ) -> Tensor:
        """The currents as the ADC of each crossbar gives them."""
        device = self.device
        if device.adc_bits is None:
            return current
        if self._calibrating:
            known = self.ranges.setdefault(layer.name, current.new_zeros(layer.compute_crossbars))
            known[number] = torch.maximum(known[number], current.amax((1, 2)))
            return current
        steps = 2**device.adc_bits - 1
        if device.adc_range == "full":
            most = drive * layer.crossbar.rows * stored.most * (1 + device.floor)
            largest = current.new_full((), most)
        elif layer.name in self.ranges:
            largest = self.ranges[layer.name][number, None, None]
        else:
            raise PlanError(
                f"{layer.name}: the range of its ADCs is not known: call "
                "OnDevice.calibrate(plan, model, batches) first, or set adc_range=full."
            )
        step = largest / steps
        if device.counts_levels:
            step = step.clamp(min=1.0)
        step = torch.where(step > 0, step, torch.ones_like(step))
        return (current / step).round().clamp(0, steps) * step
