"""How accurate a network is on several chips of one device: Monte Carlo over seeds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from math import prod
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from crosspruner.errors import ConfigError
from crosspruner.hardware.attention import layer_name
from crosspruner.hardware.calls import Call, WeightCalls, owner_of
from crosspruner.hardware.chip_norms import measuring_norms
from crosspruner.hardware.device import Device
from crosspruner.hardware.effective import layers_on_device, weight_name, without_weight
from crosspruner.hardware.evaluation_mode import evaluation
from crosspruner.hardware.integer import quantise
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.nonideal import OnDevice
from crosspruner.hardware.plan import Plan
from crosspruner.hardware.simulate import check_batched, simulate

COPIES = ("one", "own")
Batch = tuple[Tensor, Tensor]

# Chips whose weights are drawn and held at once.
_AT_ONCE = 4


def chip_accuracy(
    plan: Plan,
    model: nn.Module,
    device: Device,
    seeds: Sequence[int],
    batches: Iterable[Batch],
    calibration: Iterable[Tensor] = (),
    copies: str = "one",
    bfloat16: bool = False,
    advance: Callable[[], None] = lambda: None,
    norm_images: Tensor | None = None,
) -> Tensor:
    """Share of the images that chips of a device classify right, each chip for itself.

    Effects on weights run as ordinary convolutions with the weights of each chip, one draw for all
    copies of a weight (see `DeviceWeights`): fast. Where that cannot stand for what the chips do
    (see `needs_arrays`), every crossbar is computed by itself (`OnDevice`): exact, some twenty
    times slower. A device in which nothing is random is computed once for all seeds.

    Args:
        plan: made for this model; dense or pruned.
        model: it runs in evaluation mode, and is left as it was.
        device: the device.
        seeds: of the chips.
        batches: (images (B, *input_shape), labels (B,) int64), a list of them or a DataLoader;
            held in memory.
        calibration: images for the range of the ADCs, where it is calibrated.
        copies: "one" draw for all copies of a block where that is possible, or each its "own".
        bfloat16: compute the network in bfloat16 (autocast) where it runs as convolutions: about
            twice as fast on CPUs that have it.
        advance: called after each chip.
        norm_images: (N, *input_shape), the batch norms of each chip are measured on them, all at
            once; None = as the model has them.

    Returns:
        (seeds,) float64, 0-1.

    Raises:
        ConfigError: an unknown `copies`, seeds or batches of another form, no images, or a device
            that does not fit the crossbar.
    """
    if copies not in COPIES:
        raise ConfigError(f"copies={copies}: choose one of {', '.join(COPIES)}.")
    chips, batches = _seeds(seeds), _labelled(batches, plan)
    by_array = needs_arrays(plan, model, device, copies)
    random = device.is_random or device.read_noise > 0
    several = len(chips)
    chips = chips if random else chips[:1]
    if norm_images is not None:
        model = deepcopy(model)
    with evaluation(model), torch.no_grad():
        if by_array:
            calibration = list(calibration)
            found = _by_arrays(plan, model, device, chips, batches, calibration, norm_images)
        else:
            found = _by_weights(plan, model, device, chips, batches, bfloat16, norm_images)
        shares = []
        for share in found:
            shares.append(share)
            advance()
    return torch.tensor(shares if random else shares * several, dtype=torch.float64)


def _seeds(seeds: Any) -> list[int]:
    try:
        return [index(seed) for seed in seeds]
    except TypeError:
        raise ConfigError(
            f"seeds={seeds!r}: give a whole number for each chip, such as range(5)."
        ) from None


def _labelled(batches: Any, plan: Plan) -> list[Batch]:
    """The batches, each (images, labels) of equal length."""
    found: list[Batch] = []
    for batch in () if batches is None else batches:
        pair = isinstance(batch, list | tuple) and len(batch) == 2
        if not (pair and all(isinstance(part, Tensor) for part in batch)):
            raise ConfigError(
                f"a batch is a {type(batch).__name__}: give (images, labels) each, for example "
                "batches=[(images, labels)] or a DataLoader."
            )
        images, labels = batch
        check_batched(images, plan)
        if labels.shape != images.shape[:1]:
            raise ConfigError(
                f"a batch has images of shape {tuple(images.shape)} and labels of shape "
                f"{tuple(labels.shape)}: give one label for each image."
            )
        found.append((images, labels))
    if not found:
        raise ConfigError("there are no images to measure the accuracy on: give some batches.")
    return found


def needs_arrays(plan: Plan, model: nn.Module, device: Device, copies: str = "one") -> bool:
    """Whether convolutions with other weights cannot stand for what the crossbars compute.

    So it is with copies of their own, an ADC, read noise or wires, with weights that are computed
    in each pass or a Conv3d's, and with faults in crossbars that have cells between weights: those
    of a band, and those off the diagonal of a bundle of conv groups.

    Args:
        plan: made for this model; dense or pruned.
        model: whose weights they are.
        device: the device.
        copies: as for `chip_accuracy`.
    """
    if copies == "own" or device.needs_arrays or without_weight(plan, model):
        return True
    return device.has_faults and any(_has_cells_between(layer) for layer in plan.layers)


def _has_cells_between(layer: LayerPlan) -> bool:
    return layer.slices * prod(layer.tiling.window) > 1 or layer.bundle > 1


def _by_arrays(
    plan: Plan,
    model: nn.Module,
    device: Device,
    seeds: Sequence[int],
    batches: Sequence[Batch],
    calibration: Sequence[Tensor],
    norm_images: Tensor | None,
) -> Iterator[float]:
    calibrated = device.adc_bits is not None and device.adc_range == "calibrated"
    for seed in seeds:
        chip = OnDevice(device, seed)
        network = partial(_simulated, plan, model, chip)
        if norm_images is not None and calibrated:  # the ranges depend on the norms before them
            with measuring_norms(model):
                chip.calibrate(plan, model, [norm_images])
        if calibrated:
            chip.calibrate(plan, model, calibration)
        _measure(model, network, norm_images)
        yield _accuracy(network, batches)


def _measure(model: nn.Module, chip: Callable[[Tensor], Tensor], images: Tensor | None) -> None:
    if images is not None:
        with measuring_norms(model):
            chip(images)


def _simulated(plan: Plan, model: nn.Module, chip: OnDevice, x: Tensor) -> Tensor:
    return simulate(plan, model, x, chip)


def _by_weights(
    plan: Plan,
    model: nn.Module,
    device: Device,
    seeds: Sequence[int],
    batches: Sequence[Batch],
    bfloat16: bool,
    norm_images: Tensor | None,
) -> Iterator[float]:
    layers, keys = layers_on_device(plan, model, device), model.state_dict().keys()
    kind = batches[0][0].device.type
    # Channels last: a quarter less time on a CPU.
    batches = [(_channels_last(x), labels) for x, labels in batches]
    norm_images = norm_images if norm_images is None else _channels_last(norm_images)
    with (
        _inputs_of(plan, model, device.input_bits),
        torch.autocast(kind, torch.bfloat16, enabled=bfloat16),
    ):
        for first in range(0, len(seeds), _AT_ONCE):
            some = seeds[first : first + _AT_ONCE]
            drawn = {weight_name(name, keys): w.on(device, some) for name, w in layers.items()}
            # One chip after the other: vmap turns the chips of a convolution into groups, which
            # measured 1.8 (float32) and 3.4 (bfloat16) times slower on a CPU.
            for i in range(len(some)):
                weights = {name: weight[i] for name, weight in drawn.items()}
                network = partial(_with_weights, model, weights)
                _measure(model, network, norm_images)
                yield _accuracy(network, batches)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _with_weights(model: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(model, weights, (x,))


def _accuracy(network: Callable[[Tensor], Tensor], batches: Sequence[Batch]) -> float:
    hits = sum(int((network(x).argmax(1) == labels).sum()) for x, labels in batches)
    return hits / sum(len(labels) for _, labels in batches)


@contextmanager
def _inputs_of(plan: Plan, model: nn.Module, bits: int | None) -> Iterator[None]:
    """The planned layers see their inputs in so many bits, one scale per layer and call."""

    if bits is None:
        yield
        return
    names = {layer.name for layer in plan.layers} | set(plan.shared)
    modules = {m: name for name, m in model.named_modules() if name in names}
    owners = {id(p): layer_name(name) for name, p in model.named_parameters()}

    def limited(call: Call, running: nn.Module | None) -> Tensor:
        if owner_of(call, running, modules, owners) not in names:
            return call.compute()
        whole, scale = quantise(call.x, bits, signed=bool((call.x < 0).any()))
        return replace(call, x=(whole * scale).to(call.x.dtype)).compute()

    calls = WeightCalls(limited)
    with calls.watching(modules):
        yield
