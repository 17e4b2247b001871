"""Write the page of a race from its run folders; fails if a row that was asked for is missing.

python scripts/race_table.py logs/reproduce --out docs/race.md
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import click

from crosspruner.errors import CrossprunerError
from crosspruner.reporting.race import missing_rows, race_runs, standings
from crosspruner.reporting.race_page import race_page


@click.command(help="Tabulate FOLDER, the OUT of scripts/reproduce.sh.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", default="docs/race.md", type=click.Path(path_type=Path), help="The page.")
@click.option("--command", default="scripts/reproduce.sh DATA_DIR", help="What made the runs.")
@click.option("--network", "networks", multiple=True, help="A network that must have its rows.")
@click.option("--method", "methods", multiple=True, help="A method that must have its rows.")
@click.option("--ratio", "ratios", multiple=True, type=float, help="A ratio of every method.")
def main(
    folder: Path,
    out: Path,
    command: str,
    networks: tuple[str, ...],
    methods: tuple[str, ...],
    ratios: tuple[float, ...],
) -> None:
    try:
        runs = race_runs(folder)
    except CrossprunerError as error:
        sys.exit(f"error: {error}")
    used = ", ".join(f"{name} {version(name)}" for name in ("crosspruner", "torch", "torchvision"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(race_page(runs, out, command, f"Python {platform.python_version()}, {used}."))
    click.echo(out)
    race = standings(runs[runs["part"] == "race"])
    missing = missing_rows(race, networks, methods, ratios)
    if missing:
        sys.exit(f"error: {len(missing)} rows are missing in {out}: {', '.join(missing)}")


if __name__ == "__main__":
    main()
