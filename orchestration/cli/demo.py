"""`demo`: the main job in one go."""

from typing import Annotated

import typer

from orchestration.cli.common import CatalogOption, Failed, catalog_path, out, settings
from orchestration.demo import Demo, DemoOptions
from orchestration.demo_summary import print_summary
from orchestration.steps import Steps


def register(app: typer.Typer) -> None:
    """Add the demo."""
    app.command(rich_help_panel="Start here")(demo)


def demo(
    events: Annotated[int, typer.Option(min=1_000, help="Records of history: three closed days and today.")] = 200_000,
    rate: Annotated[float, typer.Option(min=1, help="Live events a second.")] = 50.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same shop.")] = 1,
    catalog: CatalogOption = None,
) -> None:
    """Events in, both layers, reconciled: starts the stack, runs the whole job, shows the result, leaves it running.

    Run again, it keeps what is right: the history stays, certified days are not computed again, the shop goes on.
    """
    where = settings()
    with Steps(out) as steps:
        outcome = Demo(where, catalog_path(catalog), DemoOptions(events, rate, seed), steps).run()
    print_summary(out, where, outcome)
    if outcome.problem:
        raise Failed
