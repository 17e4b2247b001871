"""What a run's networks lose on real devices: bits, variation, stuck cells, converters.

python scripts/robustness.py logs/train/runs/STAMP --seeds 20 --images 2000
python scripts/robustness.py DENSE_RUN PRUNED_RUN --effects bits,sigma --bfloat16 --out robustness

Writes robustness.csv (a row per chip), robustness.png and .svg into the (first) run folder.
Several runs must be on the same data; their names are the ends of their paths that differ.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from crosspruner.errors import CrossprunerError, RunFolderError
from crosspruner.reporting.robustness import robustness_figure, summarise
from crosspruner.reporting.svg import save_figure
from crosspruner.run_networks import read_runs
from crosspruner.training.on_device import DeviceSettings, accuracy_on_device, images_seen
from crosspruner.training.precision import bfloat16_is_emulated, slow_bfloat16


def numbers(kind: type) -> Any:
    """A click callback that reads "2,3,4" as numbers."""
    return lambda context, option, text: [kind(part) for part in text.split(",") if part]


@click.command(help=__doc__)
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--effects", default="bits,sigma,faults,adc", callback=numbers(str), show_default=True
)
@click.option("--bits", default="8,7,6,5,4,3,2", callback=numbers(int), show_default=True)
@click.option("--sigmas", default="0,0.05,0.1,0.15,0.2,0.25,0.3", callback=numbers(float),
              show_default=True)  # fmt: skip
@click.option("--faults", default="0,0.001,0.01", callback=numbers(float), show_default=True,
              help="Shares of stuck cells.")  # fmt: skip
@click.option("--adc-bits", default="8,7,6,5,4", callback=numbers(int), show_default=True)
@click.option("--seeds", default=20, show_default=True, help="Chips per point.")
@click.option("--images", default=None, type=int, help="Test images per chip; all by default.")
@click.option("--array-seeds", default=2, show_default=True, help="Chips per point of faults.")
@click.option("--array-images", default=128, show_default=True, help="Images of faults and adc.")
@click.option("--stuck", default="both", type=click.Choice(["both", "off", "on"]),
              show_default=True, help="What they are stuck at; both: half each.")  # fmt: skip
@click.option("--placement", default="none", show_default=True, help="none, columns or both.")
@click.option("--compensate", is_flag=True, help="Program a pair for its stuck cell.")
@click.option("--weight-scale", default="layer", show_default=True, help="layer or column.")
@click.option("--weight-range", default="max", show_default=True, help="max or mse.")
@click.option("--norm-images", default=0, show_default=True,
              help="Training images on which each chip measures its batch norms.")  # fmt: skip
@click.option("--bfloat16", is_flag=True, help="Compute networks in bfloat16: faster on some CPUs.")
@click.option(
    "--dense/--no-dense",
    default=True,
    help="Judge each run's dense network as well; a shared one once.",
)
@click.option("--out", default=None, type=click.Path(path_type=Path), help="Folder to write to.")
def main(folders: tuple[Path, ...], dense: bool, out: Path | None, **options: Any) -> None:
    try:
        sweep(folders, dense, folders[0] if out is None else out, options)
    except CrossprunerError as error:
        sys.exit(f"error: {error}")


def sweep(folders: tuple[Path, ...], dense: bool, out: Path, options: dict[str, Any]) -> None:
    """Judge every network under every effect, and write what came of it."""
    if options["bfloat16"] and bfloat16_is_emulated(torch.device("cpu")):
        click.echo(slow_bfloat16("--bfloat16"), err=True)
    points = list(settings_of(options))
    data, subjects = read_runs(folders, dense)
    # Without randomness, one chip stands for all.
    chips = sum(s.seeds if s.is_random else 1 for _, _, s in points) * len(subjects)
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("chips", total=chips)
        for subject in subjects:
            for effect, value, settings in points:
                progress.update(task, description=f"{subject.name}, {effect} {value:g}")
                found = accuracy_on_device(
                    subject.plan,
                    subject.network,
                    data,
                    settings,
                    options["bfloat16"],
                    lambda: progress.advance(task),
                )
                images = images_seen(subject.plan, subject.network, settings)
                rows += [
                    {
                        "network": subject.name,
                        "effect": effect,
                        "value": value,
                        "seed": seed,
                        "accuracy": accuracy,
                        "images": min(images or len(data.splits.test), len(data.splits.test)),
                    }
                    for seed, accuracy in enumerate(found.tolist())
                ]
                out.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(rows).to_csv(out / "robustness.csv", index=False)
    table = pd.DataFrame(rows)
    save_figure(robustness_figure(table), out / "robustness")
    Console().print(shown(summarise(table)))
    click.echo(f"written to {out}: robustness.csv, robustness.png, robustness.svg")


def settings_of(options: dict[str, Any]) -> Iterator[tuple[str, float, DeviceSettings]]:
    """The points of the sweep: (effect, value, device)."""
    base = DeviceSettings(
        seeds=options["seeds"],
        images=options["images"],
        array_images=options["array_images"],
        weight_scale=options["weight_scale"],
        weight_range=options["weight_range"],
        norm_images=options["norm_images"],
    )
    off = {"both": 0.5, "off": 1.0, "on": 0.0}[options["stuck"]]
    points = {
        "bits": [(b, replace(base, name="bits", weight_bits=b)) for b in options["bits"]],
        "sigma": [(s, replace(base, name="sigma", lognormal=s)) for s in options["sigmas"]],
        "faults": [
            (
                share,
                replace(
                    base,
                    name="faults",
                    stuck_off=share * off,
                    stuck_on=share * (1 - off),
                    placement=options["placement"],
                    compensate=options["compensate"],
                    seeds=options["array_seeds"],
                    copies="own",
                ),
            )
            for share in options["faults"]
        ],
        "adc": [
            (b, replace(base, name="adc", weight_bits=8, input_bits=8, adc_bits=b))
            for b in options["adc_bits"]
        ],
    }
    for effect in options["effects"]:
        if effect not in points:
            raise RunFolderError(
                f"--effects {effect} is unknown: give some of {', '.join(points)}, with commas."
            )
        for value, settings in points[effect]:
            yield effect, value, settings


def shown(found: pd.DataFrame) -> Table:
    """The summary as a table for a terminal."""
    table = Table()
    for name in ("network", "effect", "value", "accuracy", "spread", "worst", "chips", "images"):
        table.add_column(name, justify="left" if name in ("network", "effect") else "right")
    for row in found.itertuples(index=False):
        table.add_row(
            str(row.network),
            str(row.effect),
            f"{row.value:g}",
            f"{row.accuracy:.2%}",
            f"{row.spread:.2%}",
            f"{row.worst:.2%}",
            str(row.chips),
            str(row.images),
        )
    return table


if __name__ == "__main__":
    main()
