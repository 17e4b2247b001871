"""The weights that a chip computes with, as tensors that ordinary convolutions can use.

Each weight is looked up in the cells of one copy (see `map_cells`), disturbed there as `OnDevice`
disturbs these very cells, and put back into its place. Where the mapping holds a weight once
(folded), that is exact. Where it holds banded copies, **one draw stands for all copies of a
block**: the errors of a weight are then the same at every output position, instead of differing
from copy to copy, and the cells of the band that hold no weight are left out. `OnDevice` has both.
"""

from collections.abc import Collection, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from crosspruner.errors import ConfigError
from crosspruner.hardware import full_scale
from crosspruner.hardware.attention import layer_module
from crosspruner.hardware.cell_map import CellMap, cell_number, map_cells
from crosspruner.hardware.cells import check_cells, conductances, store
from crosspruner.hardware.device import Device
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.matrix import stored_as_matrix
from crosspruner.hardware.placement import place_layer
from crosspruner.hardware.plan import Plan


class DeviceWeights:
    """One layer's weights on chips.

    Args:
        layer: its plan, dense or pruned.
        weight: (Cout, Cin / G, kh, kw) or (Cout, Cin); what the plan has pruned counts as 0.
    """

    def __init__(self, layer: LayerPlan, weight: Tensor) -> None:
        self.layer = layer
        self.weight = weight.detach()

    @cached_property
    def cells(self) -> CellMap:
        """Where they are, as planned."""
        return map_cells(self.layer)

    def on(self, device: Device, seeds: Sequence[int]) -> Tensor:
        """The weights that chips of this device compute with.

        Args:
            device: its effects on weights; those of whole arrays are not looked at.
            seeds: of S chips.

        Returns:
            (S, *weight.shape), of its dtype.
        """
        kept = self.layer.kept.to(self.weight.device)
        ideal = self.weight * kept.view(*kept.shape, *[1] * (self.weight.dim() - 2))
        if not device.changes_weights:
            return ideal.expand(len(seeds), *ideal.shape)
        if device.has_faults and device.placement != "none":
            return torch.cat([self._disturbed(ideal, device, [seed]) for seed in seeds])
        return self._disturbed(ideal, device, seeds)

    def _disturbed(self, ideal: Tensor, device: Device, seeds: Sequence[int]) -> Tensor:
        cells = self.cells
        weights = ideal.flatten()[cells.weight]
        scale = full_scale.of_weights(cells, weights, device)
        stored = store(weights, scale, device, self.layer.crossbar)
        row, column = cells.row, cells.column
        if device.has_faults and device.placement != "none":
            four = ideal.view(*ideal.shape, *[1] * (4 - ideal.dim()))
            places = place_layer(self.layer, four, device, seeds[0])
            row, column = places.rows[cells.number, row], places.columns[cells.number, column]
        cell = cell_number(self.layer.crossbar, cells.number, row, column)[: len(stored.levels)]
        chips = torch.tensor(list(seeds)).view(-1, 1, 1) if device.is_random else 0
        held = conductances(stored, device, chips, self.layer.name, cell)
        found = stored.weights(held, stored.most * device.floor)
        whole = ideal.flatten().repeat(len(seeds), 1)
        whole[:, cells.weight] = found
        return whole.view(len(seeds), *ideal.shape)


def device_weights(
    plan: Plan, model: nn.Module, device: Device, seeds: Sequence[int]
) -> dict[str, Tensor]:
    """The weights of a whole network on several chips.

    Args:
        plan: made for this model; dense or pruned.
        model: its weights are read, not changed.
        device: its effects on weights.
        seeds: of S chips.

    Returns:
        Parameter name -> (S, *shape).

    Raises:
        ConfigError: the device has effects that no weight can stand for, or does not fit the cells.
    """
    keys = model.state_dict().keys()
    return {
        weight_name(name, keys): weights.on(device, seeds)
        for name, weights in layers_on_device(plan, model, device).items()
    }


def weight_name(layer: str, keys: Collection[str]) -> str:
    """The key of the tensor whose zeros are zeros of a layer's weight.

    Args:
        layer: its name; "" = the network itself.
        keys: of the network's state dict.
    """
    own = f"{layer}.weight" if layer else "weight"
    stored = own.replace("weight", "parametrizations.weight.original1")
    names = (own, f"{layer}_weight", f"{own}_v", layer, stored)
    return next((name for name in names if name in keys), own)


def holds_weight(layer: LayerPlan, model: nn.Module) -> bool:
    """Whether a layer's weight is a parameter that lies as its matrix does."""
    return layer.weight_form == "plain" and stored_as_matrix(layer_module(model, layer.name))


def layers_on_device(plan: Plan, model: nn.Module, device: Device) -> dict[str, DeviceWeights]:
    """The layers of a network, ready for many chips: {layer name: its weights}.

    Raises:
        ConfigError: as `device_weights`.
    """
    if device.needs_arrays:
        raise ConfigError(
            "ADC, read noise and wire resistance act on whole arrays, not on weights: run "
            "simulate(plan, model, x, OnDevice(device, seed)) instead, or set device.adc_bits=null "
            "device.read_noise=0 device.wire_ohms=0."
        )
    found = {}
    for layer in plan.layers:
        check_cells(device, layer.crossbar)
        if not holds_weight(layer, model):
            raise ConfigError(
                f"{layer.name}: its weight is no plain parameter in the shape of its matrix. Run "
                "simulate(plan, model, x, OnDevice(device, seed)) instead."
            )
        weight = layer_module(model, layer.name).weight
        assert isinstance(weight, Tensor)
        found[layer.name] = DeviceWeights(layer, weight)
    return found
