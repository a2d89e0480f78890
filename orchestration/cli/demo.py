"""`demo`: the main job in one go."""

from typing import Annotated

import typer

from orchestration.cli.common import CatalogOption, Failed, SourceOption, catalog_path, out, settings
from orchestration.demo import Demo
from orchestration.demo_source import DemoOptions
from orchestration.demo_summary import print_summary
from orchestration.steps import Steps


def register(app: typer.Typer) -> None:
    """Add the demo."""
    app.command(rich_help_panel="Start here")(demo)


def demo(
    events: Annotated[
        int,
        typer.Option(min=1_000, help="The shop's records of history: three closed days and today. Devices: a tenth."),
    ] = 200_000,
    rate: Annotated[float, typer.Option(min=1, help="The shop's live events a second. Devices: a tenth.")] = 50.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same events.")] = 1,
    catalog: CatalogOption = None,
    source: SourceOption = None,
) -> None:
    """Events in, both layers, reconciled: starts the stack, runs the whole job, shows the result, leaves it running.

    Run again, it keeps what is right: the history stays, certified days are not computed again, events go on.
    """
    where = settings()
    with Steps(out) as steps:
        outcome = Demo(where, catalog_path(catalog, source), DemoOptions(events, rate, seed), steps).run()
    print_summary(out, where, outcome)
    if outcome.problem:
        raise Failed
