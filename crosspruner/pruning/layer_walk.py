"""A walk along a network that is changed under way, beside the dense one.

Where the activations of all calibration images fit into memory, one pass through each network is
enough: the pruned network is changed under way, each layer just before it runs. Otherwise, and
where a layer runs several times per image, every layer gets passes of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from crosspruner.hardware.layer_modules import matrix_shape
from crosspruner.pruning.batch_norm import (
    NormReference,
    measure,
    norm_references,
    reading_norms,
    reestimate,
)
from crosspruner.pruning.layer_pruner import Samples
from crosspruner.pruning.layerwise_settings import LayerwiseSettings
from crosspruner.pruning.targets import SHARED_BY, Targets, dense_targets
from crosspruner.pruning.walk import Stop, run_through, run_to, stops

PASS_BYTES = 2**31
"""Most that the dense outputs, or the largest activation of all images, may take in one pass."""

# Images that tell what runs in which order.
_TO_LOOK_AT = 2

# An activation is there as input and output of a layer, padded, and as patches in part.
_COPIES = 4


class Walk:
    """A walk along a network that is changed under way.

    Args:
        network: the copy to change, in evaluation mode.
        dense: the network as it was, in evaluation mode.
        users: layer name -> names of the modules that use its weight.
        batches: calibration images.
        settings: of the moments.
        generator: CPU generator of the positions drawn.
    """

    def __init__(
        self,
        network: nn.Module,
        dense: nn.Module,
        users: Mapping[str, Sequence[str]],
        batches: Sequence[Tensor],
        settings: LayerwiseSettings,
        generator: torch.Generator,
    ) -> None:
        self.network, self.dense = network, dense
        self.batches, self.settings, self.generator = batches, settings, generator
        few = batches[0][:_TO_LOOK_AT]
        self.places = stops(network, few, users)
        self.norms = {stop.name: stop for stop in self.places if stop.is_norm}
        self.theirs = {stop.name: stop for stop in stops(dense, few, users)}
        self._targets: dict[str, list[Targets]] | None = None

    def keep_as_they_are(self, names: Iterable[str]) -> None:
        """Leave out layers, and the batch norms before the first layer that is left."""
        kept = set(names)
        places = [stop for stop in self.places if stop.name not in kept]
        first = next((i for i, stop in enumerate(places) if not stop.is_norm), len(places))
        self.places = places[first:]

    def only_layers(self) -> None:
        """Leave the batch norms as they are."""
        self.places = [stop for stop in self.places if not stop.is_norm]

    @cached_property
    def references(self) -> dict[str, NormReference]:
        """The batch norms of the dense network on the calibration images, by name."""
        return norm_references(self.dense, self.batches)

    def reestimate(self, norm: Stop) -> None:
        """Set the statistics of a batch norm right, all layers before it being final."""
        reestimate(self.network, self.batches, norm, self.references.get(norm.name))

    @property
    def _their_layers(self) -> list[Stop]:
        """The layers to visit, in the dense network."""
        return [self.theirs[stop.name] for stop in self.places if not stop.is_norm]

    @property
    def fits_one_pass(self) -> bool:
        """Whether the activations of all images fit into memory, and each stop runs once."""
        images = sum(len(batch) for batch in self.batches)
        layers = self._their_layers
        drawn = sum(_drawn_entries(stop, self.settings.positions) for stop in layers)
        largest = max((stop.entries for stop in self.theirs.values()), default=0)
        held = 4 * images * max(drawn, _COPIES * largest)
        return held <= PASS_BYTES and all(stop.calls == 1 for stop in self.places)

    @contextmanager
    def watching(self) -> Iterator[Sequence[Tensor]]:
        """Take in what the walk needs of the dense network while somebody else runs it.

        Yields:
            The batches to run it on once, each image once and in this order. If they are run in
            part only, or the walk will need more than one pass, nothing is taken in.
        """
        layers = self._their_layers
        if not self.fits_one_pass or any(stop.by_function for stop in layers):
            yield self.batches
            return
        parts = torch.cat(list(self.batches)).split(SHARED_BY)
        found: dict[str, list[Targets]] = {stop.name: [] for stop in layers}

        def note(stop: Stop, module: nn.Module, _: tuple, output: Tensor) -> None:
            drawn = (self.settings.positions, self.generator)
            found[stop.name].append(Targets.draw(module, output.detach(), *drawn))

        with ExitStack() as watchers:
            for stop in layers:
                hook = stop.modules[0].register_forward_hook(partial(note, stop))
                watchers.callback(hook.remove)
            references = watchers.enter_context(reading_norms(self.dense))
            yield parts
        if all(len(taken) == len(parts) for taken in found.values()):
            self._targets, self.references = found, references()

    def run(self, visit: Callable[[Stop, Samples], None], between: bool = False) -> None:
        """Visit every layer in the order of the network; batch norms are set right on the way.

        Args:
            visit: may change the weights of the layer.
            between: `visit` runs the network itself, so no pass may be under way.
        """
        if not self.places:
            return
        if self.fits_one_pass and not between:
            self._in_one_pass(visit)
        else:
            self._stop_by_stop(visit)

    def _in_one_pass(self, visit: Callable[[Stop, Samples], None]) -> None:
        images = torch.cat(list(self.batches))
        targets, self._targets = self._targets, None
        if targets is None:
            targets = self._look_at_the_dense_one(images)

        def before(stop: Stop, module: nn.Module, inputs: Tensor) -> None:
            if stop.is_norm:
                measure(stop, inputs, self.references)
                return
            known = targets.pop(stop.name)
            parts = inputs.split(SHARED_BY)
            visit(stop, lambda: zip(parts, known, strict=True))

        run_through(self.network, images, self.places, before)

    def _look_at_the_dense_one(self, images: Tensor) -> dict[str, list[Targets]]:
        """The targets of all layers, and the references of all norms, in a pass of their own."""
        layers = self._their_layers
        drawn = (self.settings.positions, self.generator)
        needed = any(stop.is_norm for stop in self.places)
        with reading_norms(self.dense) if needed else nullcontext() as references:
            targets = dense_targets(self.dense, images, layers, *drawn)
        if references is not None:
            self.references = references()
        return targets

    def _stop_by_stop(self, visit: Callable[[Stop, Samples], None]) -> None:
        for stop in self.places:
            if stop.is_norm:
                self.reestimate(stop)
            else:
                visit(stop, partial(self._samples, stop, self.generator.get_state()))

    def _samples(self, stop: Stop, draws: Tensor) -> Iterator[tuple[Tensor, Targets]]:
        generator = torch.Generator()
        generator.set_state(draws)
        targets: list[Targets] = []
        pairs: list[tuple[Tensor, Targets]] = []

        def note_target(module: nn.Module, _: Tensor, output: Tensor) -> None:
            targets.append(Targets.draw(module, output, self.settings.positions, generator))

        def take_input(_: nn.Module, inputs: Tensor, _output: Tensor) -> None:
            pairs.append((inputs, targets.pop(0)))

        for images in self.batches:
            run_to(self.dense, images, self.theirs[stop.name], note_target)
            run_to(self.network, images, stop, take_input)
            yield from pairs
            pairs.clear()


def _drawn_entries(stop: Stop, positions: int | None) -> int:
    """Numbers per image that `Targets` of a layer hold."""
    if positions is None:
        return stop.output_entries
    return min(stop.output_entries, matrix_shape(stop.modules[0])[0] * positions)
