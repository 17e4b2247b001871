"""What a finished run leaves behind: the pruned network, its plan, its layer table, its summary."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor, nn

from crosspruner.hardware import Plan, UnitCosts
from crosspruner.pruning.saving import save_pruned
from crosspruner.reporting.cost import cost_summary, write_cost_table
from crosspruner.reporting.layers import write_layer_table


@dataclass(frozen=True)
class Outcome:
    """What came out of a run.

    Args:
        dense_accuracy: test accuracy before pruning, 0 to 1; None where it is not known.
        accuracy: test accuracy of the pruned network, 0 to 1.
        plan: the packed plan of the pruned network.
        masks: layer name -> (U, P) bool.
        val_accuracy: validation accuracy of the pruned network, by which it was chosen and by which
            runs are to be compared and chosen; None where it is not known.
        oneshot_accuracy: test accuracy right after the pruning, before any fine-tuning; None where
            it is not known.
        device: name of the device whose chips computed the pruned network; None = none did.
        device_accuracies: test accuracy on each of them, 0 to 1.
        units: what an event on the chip costs; None = not asked for.
    """

    dense_accuracy: float | None
    accuracy: float
    plan: Plan
    masks: dict[str, Tensor]
    val_accuracy: float | None = None
    oneshot_accuracy: float | None = None
    device: str | None = None
    device_accuracies: tuple[float, ...] = ()
    units: UnitCosts | None = None


def summary_of(outcome: Outcome, labels: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The flat figures of `summary.json`.

    Args:
        outcome: what came out.
        labels: how the run was made: model, data, crossbar, mapping, grain, ratio, seed, ...
        seconds: wall time of the run.
    """
    plan, dense = outcome.plan, outcome.plan.dense
    drop = None
    if outcome.dense_accuracy is not None:
        drop = outcome.dense_accuracy - outcome.accuracy
    on_device: dict[str, Any] = {}
    if outcome.device is not None:
        on_device = {
            "device": outcome.device,
            "device_accuracy": fmean(outcome.device_accuracies),
            "device_accuracy_spread": pstdev(outcome.device_accuracies),
            "device_chips": len(outcome.device_accuracies),
        }
    return {
        **labels,
        **on_device,
        "dense_accuracy": outcome.dense_accuracy,
        "accuracy": outcome.accuracy,
        "accuracy_drop": drop,
        "val_accuracy": outcome.val_accuracy,
        "oneshot_accuracy": outcome.oneshot_accuracy,
        "compute_crossbars_dense": dense.compute_crossbars,
        "compute_crossbars": plan.compute_crossbars,
        "compute_saved": 1 - plan.compute_crossbars / dense.compute_crossbars,
        "total_crossbars_dense": dense.total_crossbars,
        "total_crossbars": plan.total_crossbars,
        "total_saved": 1 - plan.total_crossbars / dense.total_crossbars,
        "weight_sparsity": 1 - plan.weights_kept,
        "phases": plan.phases,
        **(cost_summary(plan, outcome.units) if outcome.units is not None else {}),
        "wall_seconds": round(seconds, 1),
    }


def write_results(
    folder: Path, network: nn.Module, outcome: Outcome, labels: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Write all of a run's results into its folder.

    Returns:
        What `summary.json` holds.
    """
    save_pruned(folder / "pruned", network, outcome.plan, outcome.masks)
    outcome.plan.save(folder / "mapping.json")
    outcome.plan.dense.save(folder / "mapping_dense.json")
    write_layer_table(outcome.plan, folder / "crossbars.csv")
    if outcome.units is not None:
        write_cost_table(outcome.plan, outcome.units, folder / "cost.csv")
    summary = summary_of(outcome, labels, seconds)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def headline(summary: dict[str, Any]) -> str:
    """What matters of a summary, in one line."""
    dense = summary["dense_accuracy"]
    before = "unknown" if dense is None else f"{dense:.2%}"
    chip = ""
    if "device_accuracy" in summary:
        chip = (
            f", {summary['device_accuracy']:.2%} on {summary['device']} "
            f"(chips +-{summary['device_accuracy_spread']:.2%})"
        )
    return (
        f"test accuracy {before} dense, {summary['accuracy']:.2%} pruned{chip}; "
        f"compute crossbars {summary['compute_crossbars_dense']:,} -> "
        f"{summary['compute_crossbars']:,} ({summary['compute_saved']:.2%} saved), "
        f"all crossbars {summary['total_crossbars_dense']:,} -> {summary['total_crossbars']:,}"
    )
