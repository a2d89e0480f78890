"""The `lockstep` command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli import (
    alerts,
    archive,
    backfill,
    bench,
    catalog,
    data,
    demo,
    layers,
    publish,
    repair,
    serve,
    stack,
    versions,
)
from orchestration.cli.common import STATE, guarded
from orchestration.sources import DEMO_CATALOGS

app = typer.Typer(
    name="lockstep",
    help=(
        "Live numbers from a speed layer, nightly numbers from a batch layer, and every difference between them "
        "explained.\n\nExit codes: 0 done, 1 the work found a problem, 2 wrong usage or setup."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    catalog_file: Annotated[
        Path,
        typer.Option(
            "--catalog",
            "-c",
            envvar="LOCKSTEP_CATALOG",
            help="Catalog of metrics: a YAML file is one source, a directory of them several.",
            show_default="the demo's",
        ),
    ] = DEMO_CATALOGS,
    source: Annotated[
        str | None,
        typer.Option("--source", "-s", help="Only this source of the catalog's.", show_default="all of them"),
    ] = None,
) -> None:
    """Note the global options for the command that follows."""
    STATE.catalog = catalog_file
    STATE.source = source
    STATE.json_output = False


for family in (demo, stack, catalog, versions, data, repair, layers, backfill, publish, archive, bench, serve, alerts):
    family.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; the exit code says how it went.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    guarded(lambda: app(arguments, prog_name="lockstep"))


if __name__ == "__main__":
    main()
