"""The plan: which crossbars a model takes, layer by layer, dense or pruned."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from crosspruner.errors import PlanError
from crosspruner.hardware.crossbar import Crossbar
from crosspruner.hardware.layer_plan import LayerPlan
from crosspruner.hardware.mapping_spec import MappingSpec
from crosspruner.hardware.packing import checked_grain
from crosspruner.hardware.plan_file import READABLE, VERSION, read_layer, to_text, write_layer

if TYPE_CHECKING:
    from crosspruner.hardware.cost import Cost, UnitCosts


@dataclass(frozen=True, eq=False)
class Plan:
    """The crossbars of a whole model. Counts are sums over the layers."""

    layers: tuple[LayerPlan, ...]
    """In the order of their first use in the forward pass."""
    crossbar: Crossbar
    mapping: MappingSpec
    grain: str
    """crossbar or column: what pruning removes as a unit."""
    input_shape: tuple[int, ...]
    """Shape of one image, without the batch."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Layers that use another one's weight and crossbars: {name: counted layer}."""
    not_mapped: Mapping[str, str] = field(default_factory=dict)
    """What has weights and is left out of the plan: {module or parameter: kind}."""

    @property
    def compute_crossbars(self) -> int:
        """Crossbars that multiply by weights."""
        return sum(layer.compute_crossbars for layer in self.layers)

    @property
    def dense_compute_crossbars(self) -> int:
        """The same before pruning."""
        return sum(layer.dense_compute_crossbars for layer in self.layers)

    @property
    def compute_saved(self) -> float:
        """Fraction of the dense compute crossbars that pruning removed, 0-1."""
        return 1 - self.compute_crossbars / self.dense_compute_crossbars

    @property
    def reduction_crossbars(self) -> int:
        """Crossbars that add partial outputs."""
        return sum(layer.reduction_crossbars for layer in self.layers)

    @property
    def buffer_crossbars(self) -> int:
        """Crossbars that hold earlier input rows."""
        return sum(layer.buffer_crossbars for layer in self.layers)

    @property
    def total_crossbars(self) -> int:
        """Compute, reduction and buffer crossbars."""
        return self.compute_crossbars + self.reduction_crossbars + self.buffer_crossbars

    @property
    def dense_total_crossbars(self) -> int:
        """The same before pruning."""
        return sum(layer.dense.total_crossbars for layer in self.layers)

    @property
    def phases(self) -> int:
        """Phases per image, the layers working one after the other."""
        return sum(layer.phases for layer in self.layers)

    @property
    def cells_used(self) -> int:
        """Cells that hold a weight."""
        return sum(layer.cells_used for layer in self.layers)

    @property
    def cells_occupied(self) -> int:
        """All cells of the compute crossbars."""
        return sum(layer.cells_occupied for layer in self.layers)

    @property
    def utilisation(self) -> float:
        """cells_used / cells_occupied, 0-1."""
        return self.cells_used / max(self.cells_occupied, 1)

    @property
    def weights_kept(self) -> float:
        """Fraction of the weights of the planned layers that are not pruned, 0-1."""
        whole = sum(layer.weights for layer in self.layers)
        return sum(layer.weights * layer.weights_kept for layer in self.layers) / whole

    def layer(self, name: str) -> LayerPlan:
        """The layer of that name (a shared name gives the layer that is counted).

        Raises:
            PlanError: the plan has no such layer.
        """
        name = self.shared.get(name, name)
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = ", ".join(layer.name for layer in self.layers)
        raise PlanError(f"the plan has no layer {name!r}; it has: {names}.")

    def pruned(
        self,
        masks: Mapping[str, Tensor],
        grain: str | None = None,
        input_orders: Mapping[str, Tensor] | None = None,
        output_orders: Mapping[str, Tensor] | None = None,
    ) -> "Plan":
        """The plan after pruning; this plan is left as it is.

        Args:
            masks: {layer name: mask}, True = kept. Crossbar grain (G * Q, P), column grain
                (Cout, P); bool, or 0 and 1. Layers that are not named stay as they are.
            grain: of the masks; None keeps the plan's.
            input_orders: {layer name: (G, Cin / G) permutation}: the FM, numbered within its conv
                group, at each place. Input group p holds places p * kin to (p + 1) * kin - 1.
            output_orders: {layer name: (G, Cout / G) permutation}: likewise, output group q.

        Returns:
            The pruned plan.

        Raises:
            PlanError: a name is not in the plan, or a shape or permutation does not fit its layer.
        """
        grain = checked_grain(self.grain if grain is None else grain)
        inputs, outputs = dict(input_orders or {}), dict(output_orders or {})
        for name in {*masks, *inputs, *outputs}:
            if name in self.shared:
                raise PlanError(
                    f"{name} uses the weight of {self.shared[name]}: give the mask under that name."
                )
            self.layer(name)
        layers = tuple(
            layer.pruned(masks.get(n), grain, inputs.get(n), outputs.get(n))
            for layer in self.layers
            for n in [layer.name]
        )
        return replace(self, layers=layers, grain=grain)

    @property
    def dense(self) -> "Plan":
        """The plan before pruning, in the original order of FMs."""
        return replace(self, layers=tuple(layer.dense for layer in self.layers))

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict of plain numbers and strings per layer (see `layer_row`)."""
        return [layer.row() for layer in self.layers]

    def table(self) -> str:
        """The plan as a plain-text table with totals, ready to print."""
        from crosspruner.hardware.plan_table import plan_table

        return plan_table(self)

    def cost(self, units: "UnitCosts") -> "Cost":
        """Energy, latency and area of one image, event by event (see `UnitCosts`)."""
        from crosspruner.hardware.cost import plan_cost

        return plan_cost(self, units)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values: everything that `save` writes."""
        return {
            "version": VERSION,
            "compute_crossbars": self.compute_crossbars,
            "dense_compute_crossbars": self.dense_compute_crossbars,
            "crossbar": asdict(self.crossbar),
            "mapping": asdict(self.mapping),
            "grain": self.grain,
            "input_shape": list(self.input_shape),
            "shared": dict(self.shared),
            "not_mapped": dict(self.not_mapped),
            "layers": [write_layer(layer) for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """The plan that `to_dict` wrote.

        Raises:
            PlanError: another version, a missing key, or counts that contradict the blocks.
        """
        if data.get("version") not in READABLE:
            raise PlanError(
                f"the plan has version {data.get('version')!r}, this crosspruner reads {VERSION}: "
                "write it again with plan.save."
            )
        try:
            crossbar = Crossbar(**data["crossbar"])
            plan = cls(
                layers=tuple(read_layer(item, crossbar) for item in data["layers"]),
                crossbar=crossbar,
                mapping=MappingSpec(**data["mapping"]),
                grain=checked_grain(data["grain"]),
                input_shape=tuple(data["input_shape"]),
                shared=dict(data["shared"]),
                not_mapped=dict(data["not_mapped"]),
            )
        except (KeyError, TypeError, IndexError, RuntimeError) as error:
            raise PlanError(
                f"the plan is damaged ({type(error).__name__}: {error}): write it again with "
                "plan.save."
            ) from error
        if plan.compute_crossbars != data["compute_crossbars"]:
            raise PlanError(
                f"the plan says {data['compute_crossbars']} compute crossbars but lists "
                f"{plan.compute_crossbars}: the file was changed by hand or cut short."
            )
        return plan

    def save(self, path: str | Path) -> Path:
        """Writes the plan as JSON, from which the crossbars can be counted by hand.

        Per layer: compute crossbars = len(blocks) * slices * row_splits. An entry of `blocks` is
        [i, o] for the rows of input_groups[i] and the columns of output_groups[o], or
        [i, [outputs]] where surviving columns were recombined.

        Returns:
            The path that was written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_text(self.to_dict()) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads what `save` wrote.

        Raises:
            PlanError: no such file, not JSON, or not a plan.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PlanError(f"{path} cannot be read as a plan: {error}") from error
        if not isinstance(data, dict):
            raise PlanError(f"{path} is JSON but not a plan: give a file written by plan.save.")
        return cls.from_dict(data)
