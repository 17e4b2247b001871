"""Counts the crossbars of the model zoos and writes the table of docs/models.md.

python scripts/zoo_table.py               # prints the table
python scripts/zoo_table.py --write       # puts it into docs/models.md
"""

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO, Entry

import crosspruner as cp

DOC = Path(__file__).resolve().parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- zoo table: begin -->", "<!-- zoo table: end -->"
MAPPINGS = ("folded", "semifolded", "unfolded")
HEAD = [
    *("family", "model", "image", "layers", "GMACs", "mapped", "of all"),
    *(*MAPPINGS, "not mapped", "status"),
]

# Products of two activations: attention's QK' and AV. No weight is in them.
_ACTIVATIONS = ("bmm", "baddbmm", "_scaled_dot_product")


def create(entry: Entry) -> nn.Module:
    """The model without numbers where it can be made so, in evaluation mode."""
    try:
        with torch.device("meta"):
            return entry.create().eval()
    except (NotImplementedError, RuntimeError):  # reads a value while it is made
        return entry.create().to("meta").eval()


def macs(model: nn.Module, size: int) -> tuple[int, int]:
    """Multiplications per image as torch counts them: with weights, and of two activations."""
    # Gradients on: attention then runs as single operations, which are counted one by one.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        model(torch.zeros(1, 3, size, size, device="meta"))
    flops: Counter[str] = Counter()
    for operation, count in counter.get_flop_counts()["Global"].items():
        flops[str(operation).split(".")[-1]] += count
    apart = sum(n for name, n in flops.items() if name.startswith(_ACTIVATIONS))
    return (sum(flops.values()) - apart) // 2, apart // 2


def left_out(plan: cp.Plan) -> str:
    """What is not mapped, by kind."""
    kinds: Counter[str] = Counter()
    for kind in plan.not_mapped.values():
        norm = "norm" in kind.lower().removeprefix("parameter of")
        kinds["norms" if norm and not kind.startswith("parameter") else kind] += 1
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "-"


def row(entry: Entry) -> tuple[list[str], float, float]:
    """One row of the table, the share of mapped multiplications, and the seconds of one plan."""
    model, size = create(entry), entry.table_size
    plans, seconds = [], 0.0
    for mapping in MAPPINGS:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*never pruned.*")
            plans.append(cp.plan_model(model, (3, size, size), "256x256", mapping))
        seconds = time.perf_counter() - start if mapping == "semifolded" else seconds
    mapped = sum(layer.geometry.macs for layer in plans[0].layers)
    computed = sum(layer.weight_form == "computed" for layer in plans[0].layers)
    weighted, products = macs(model, size)
    share = mapped / weighted
    cells = [
        *(entry.family, f"{entry.source} `{entry.name}`", str(size), str(len(plans[0].layers))),
        *(f"{(weighted + products) / 1e9:.2f}", f"{share:.2%}"),
        f"{mapped / (weighted + products):.1%}",
        *(f"{plan.compute_crossbars:,}" for plan in plans),
        left_out(plans[0]),
        f"{computed} layers are never pruned" if computed else "ok",
    ]
    return cells, share, seconds


def lines(rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table."""
    text = {0, 1, len(HEAD) - 2, len(HEAD) - 1}
    yield "| " + " | ".join(HEAD) + " |"
    yield "|" + "".join("---|" if i in text else "--:|" for i in range(len(HEAD)))
    yield from ("| " + " | ".join(cells) + " |" for cells in rows)


@click.command(help=__doc__)
@click.option("--write", is_flag=True, help="Put the table into docs/models.md.")
def main(**options: Any) -> None:
    """Prints or writes the table."""
    found = [row(entry) for entry in ZOO]
    table = "\n".join(lines([cells for cells, _, _ in found]))
    seconds = sum(each for _, _, each in found)
    summary = (
        f"{len(found)} architectures; one semi-folded plan of each, one after the other: "
        f"{seconds:.1f} s on one core. Least share of weight products mapped: "
        f"{min(share for _, share, _ in found):.2%}."
    )
    if not options["write"]:
        click.echo(f"{table}\n\n{summary}")
        return
    before, rest = DOC.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = f"{before}{BEGIN}\n{summary}\n\n{table}\n{END}{after}"
    DOC.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
