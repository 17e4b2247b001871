"""Save the project's dashboard in Weights & Biases.

python scripts/dashboard.py --dry-run               print it; needs no account and no network
python scripts/dashboard.py --entity my-team        save it as a view of my-team/crosspruner
"""

import sys

import click

from crosspruner.errors import CrossprunerError
from crosspruner.reporting.dashboard import (
    build_workspace,
    default_entity,
    describe,
    save_workspace,
)


@click.command(help="Save the dashboard of PROJECT in Weights & Biases.")
@click.option("--entity", help="Team or user; default: that of the account.")
@click.option("--project", default="crosspruner", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the dashboard instead of saving it.")
def main(entity: str | None, project: str, dry_run: bool) -> None:
    try:
        if dry_run:
            click.echo(describe(build_workspace(entity or "ENTITY", project)))
        else:
            click.echo(save_workspace(build_workspace(entity or default_entity(), project)))
    except CrossprunerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
