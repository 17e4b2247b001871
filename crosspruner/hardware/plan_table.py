"""A plan as a plain-text table."""

from collections.abc import Mapping
from io import StringIO
from textwrap import fill
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from crosspruner.hardware.plan import Plan

_WIDTH = 160

# Names of one kind that are all written out.
_NAMED = 4


def plan_table(plan: "Plan") -> str:
    """Draws one line per layer and a line of totals.

    Args:
        plan: dense or pruned; a pruned one shows the counts before and after.

    Returns:
        The table, without colours, at most 160 characters wide.
    """
    pruned = any(layer.mask is not None for layer in plan.layers)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.title = (
        f"{plan.crossbar} crossbars, {plan.mapping.name} mapping, "
        f"{plan.crossbar.cells_per_weight} cell(s) per weight"
    )
    for title, footer in (
        ("layer", "total"),
        ("FMs", ""),
        ("kernel", ""),
        ("Kin x Kout", ""),
        ("window", ""),
        ("blocks", ""),
        ("slices", ""),
        ("splits", ""),
        *([("dense", f"{plan.dense_compute_crossbars:,}")] if pruned else []),
        ("compute", f"{plan.compute_crossbars:,}"),
        *([("saved", f"{plan.compute_saved:.1%}")] if pruned else []),
        ("reduction", f"{plan.reduction_crossbars:,}"),
        ("buffer", f"{plan.buffer_crossbars:,}"),
        ("phases", f"{plan.phases:,}"),
        ("used", f"{plan.utilisation:.1%}"),
    ):
        table.add_column(
            title, footer, justify="left" if title == "layer" else "right", no_wrap=True
        )
    for layer, row in zip(plan.layers, plan.rows(), strict=True):
        apart = layer.conv_groups // layer.bundle
        groups = f"{apart}·" if apart > 1 else ""
        table.add_row(
            layer.name if layer.prunable else f"{layer.name} *",
            f"{row['in_fms']}→{row['out_fms']}",
            row["kernel"] if layer.kind == "conv" else "-",
            f"{row['kin']} x {row['kout']}",
            row["window"],
            f"{groups}{row['input_groups']}·{row['output_groups']}",
            str(row["slices"]),
            str(row["row_splits"]),
            *([f"{row['compute_dense']:,}"] if pruned else []),
            f"{row['compute']:,}",
            *([f"{row['saved']:.1%}"] if pruned else []),
            f"{row['reduction']:,}",
            f"{row['buffer']:,}",
            f"{row['phases']:,}",
            f"{row['utilisation']:.1%}",
        )
    text = _plain(table)
    text += f"total crossbars (compute + reduction + buffer): {plan.total_crossbars:,}\n"
    if any(not layer.prunable for layer in plan.layers):
        text += "* never pruned, counted all the same\n"
    if plan.shared:
        pairs = ", ".join(f"{name} (= {first})" for name, first in plan.shared.items())
        text += _wrapped(f"shared weights, counted once: {pairs}")
    if plan.not_mapped:
        text += _wrapped(f"with weights, but not on crossbars: {_by_kind(plan.not_mapped)}")
    computed = [layer.name for layer in plan.layers if layer.weight_form == "computed"]
    if computed:
        text += _wrapped(f"weight computed in each pass, never pruned: {', '.join(computed)}")
    return text


def _by_kind(names: Mapping[str, str]) -> str:
    """Names with their kinds; of more than a few of one kind, the first and the number."""
    kinds: dict[str, list[str]] = {}
    for name, kind in names.items():
        kinds.setdefault(kind, []).append(name or "the model itself")
    return ", ".join(
        f"{', '.join(found)} ({kind})"
        if len(found) <= _NAMED
        else f"{found[0]} and {len(found) - 1} more ({kind})"
        for kind, found in kinds.items()
    )


def _wrapped(text: str) -> str:
    return fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False) + "\n"


def _plain(table: Table) -> str:
    console = Console(
        file=StringIO(), width=_WIDTH, color_system=None, markup=False, emoji=False, highlight=False
    )
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
