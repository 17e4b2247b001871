"""Write the report of one run or of a whole sweep.

python scripts/report.py logs/train/multiruns/<stamp>
"""

import sys
from pathlib import Path

import click

from crosspruner.errors import CrossprunerError
from crosspruner.reporting import write_sweep_report


@click.command(help="Write report.html for FOLDER: a run, a sweep, or any folder above runs.")
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    try:
        click.echo(write_sweep_report(folder))
    except CrossprunerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
