"""The weights that a chip computes with, as tensors that ordinary convolutions can use.

Each weight is looked up in the cells of one copy (see `map_cells`), disturbed there as `OnDevice`
disturbs these very cells, and put back into its place. Where the mapping holds a weight once and
nothing between weights (folded, conv groups apart), that is exact. Where it holds banded copies,
**one draw stands for all copies of a block**: the errors of a weight are then the same at every
output position, instead of differing from copy to copy. Cells that hold no weight, those of a band
and those off the diagonal of a bundle of conv groups, are left out. `OnDevice` has both.
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
from crosspruner.hardware.layer_modules import operation_of
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.matrix import from_matrix, to_matrix
from crosspruner.hardware.placement import place_layer
from crosspruner.hardware.plan import Plan


class DeviceWeights:
    """One layer's weights on chips.

    Args:
        layer: its plan, dense or pruned.
        weight: its parameter, in its own shape; what the plan has pruned counts as 0.
        operation: that it is a weight of, which says how it lies in the matrix.
    """

    def __init__(self, layer: LayerPlan, weight: Tensor, operation: str = "conv2d") -> None:
        self.layer = layer
        self.weight = weight.detach()
        self.operation = operation

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
        groups = self.layer.conv_groups
        matrix = to_matrix(self.operation, self.weight, groups)
        ideal = matrix * self.layer.kept[..., None, None].to(matrix.device)
        if not device.changes_weights:
            chips = ideal.expand(len(seeds), *ideal.shape)
        elif device.has_faults and device.placement != "none":
            chips = torch.cat([self._disturbed(ideal, device, [seed]) for seed in seeds])
        else:
            chips = self._disturbed(ideal, device, seeds)
        return from_matrix(self.operation, chips, tuple(self.weight.shape), groups)

    def _disturbed(self, ideal: Tensor, device: Device, seeds: Sequence[int]) -> Tensor:
        cells = self.cells
        weights = ideal.flatten()[cells.weight]
        scale = full_scale.of_weights(cells, weights, device)
        stored = store(weights, scale, device, self.layer.crossbar)
        row, column = cells.row, cells.column
        if device.has_faults and device.placement != "none":
            places = place_layer(self.layer, ideal, device, seeds[0])
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
    """Whether a layer's weight is a parameter that is its matrix, in whatever order."""
    weight = getattr(layer_module(model, layer.name), "weight", None)
    if layer.weight_form != "plain" or not isinstance(weight, Tensor) or weight.dim() > 4:
        return False
    blank = torch.empty_like(weight, device="meta")
    matrix = to_matrix(_operation(layer, model), blank, layer.conv_groups)
    geometry = layer.geometry
    return matrix.shape == (geometry.out_channels, geometry.group_inputs, *geometry.kernel)


def without_weight(plan: Plan, model: nn.Module) -> list[str]:
    """Names of the layers that convolutions with other weights cannot stand for."""
    return [layer.name for layer in plan.layers if not holds_weight(layer, model)]


def _operation(layer: LayerPlan, model: nn.Module) -> str:
    # A product's weight may be any module's, a convolution's is that of one of LAYERS.
    if layer.kind == "linear":
        return "linear"
    return operation_of(layer_module(model, layer.name))


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
                f"{layer.name}: its weight is no plain parameter that is its matrix. Run "
                "simulate(plan, model, x, OnDevice(device, seed)) instead."
            )
        weight = layer_module(model, layer.name).weight
        assert isinstance(weight, Tensor)
        found[layer.name] = DeviceWeights(layer, weight, _operation(layer, model))
    return found
