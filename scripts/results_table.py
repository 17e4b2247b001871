"""Print the results of runs as a Markdown table, each row with the command that made it.

python scripts/results_table.py logs/train/runs/*/
"""

import json
import shlex
from pathlib import Path

import click
import torch
import yaml


@click.command(help="Tabulate FOLDERS, finished run folders, in the order given.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    rows = [(folder, json.loads((folder / "summary.json").read_text())) for folder in folders]
    click.echo(
        "| grain | solver | ratio | seed | dense | pruned | compute crossbars | saved "
        "| all crossbars | minutes |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for _, row in rows:
        click.echo(
            f"| {row['grain']} | {row['solver']} | {row['ratio']:g} | {row['seed']} "
            f"| {_percent(row['dense_accuracy'])} | {_percent(row['accuracy'])} "
            f"| {row['compute_crossbars_dense']:,} → {row['compute_crossbars']:,} "
            f"| {row['compute_saved']:.2%} "
            f"| {row['total_crossbars_dense']:,} → {row['total_crossbars']:,} "
            f"| {row['wall_seconds'] / 60:.1f} |"
        )
    click.echo(f"\ntorch {torch.__version__}\n\n```bash")
    for folder, _ in rows:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        click.echo(f"python train.py {shlex.join(overrides)}")
    click.echo("```")


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"


if __name__ == "__main__":
    main()
