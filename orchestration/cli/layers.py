"""`speed`, `batch`, `reconcile`: the two layers and the judge between them."""

import os
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from metrics.catalog import Catalog
from orchestration.cli.common import (
    FOUND,
    CatalogOption,
    Failed,
    JsonOption,
    catalog_path,
    days_between,
    err,
    fail,
    out,
    parse_day,
    print_json,
    settings,
    speak_json,
)
from orchestration.cli.common import catalog as load

_First = Annotated[str, typer.Option("--from", metavar="DAY", help="First UTC day, YYYY-MM-DD.")]
_Last = Annotated[str, typer.Option("--to", metavar="DAY", help="Last UTC day, included.")]


def register(app: typer.Typer) -> None:
    """Add the layers' commands."""
    for command in (speed, batch, reconcile):
        app.command(rich_help_panel="Layers")(command)


def speed(
    until_drained: Annotated[
        bool, typer.Option("--until-drained", help="End once the log as of now is published.")
    ] = False,
    catalog: CatalogOption = None,
) -> None:
    """Run the speed layer: Beam on Flink, from the log to the tables, until stopped (it drains on SIGTERM)."""
    load(catalog)  # a bad catalog is refused before anything starts
    arguments = ["--until-drained"] if until_drained else []
    # This process becomes the speed layer, so that a signal, kill -9 included, reaches it and nothing is left behind.
    command = [sys.executable, "-m", "speed_layer", "--catalog", str(catalog_path(catalog)), *arguments]
    os.execv(sys.executable, command)


def batch(
    first: _First,
    last: _Last,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read; compute nothing.")] = False,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help="Compute a day even though events that count may still come.")
    ] = False,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute days exactly from the log, in one Spark run, and publish them at once."""
    speak_json(as_json)
    from batch_layer.publish import WriteError  # noqa: PLC0415
    from batch_layer.run import plan_days, run  # noqa: PLC0415 - Spark takes a second to import

    definition = load(catalog)
    days = days_between(parse_day(first), parse_day(last))
    if dry_run:
        _show_plan(plan_days(settings(), definition, days, allow_open=allow_open), definition, as_json)
        return
    with err.status(f"computing {first} to {last}"):
        try:
            results = run(settings(), definition, days, allow_open=allow_open)
        except WriteError as error:
            fail(str(error), FOUND)
    if as_json:
        print_json({"partitions": [result.as_json() for result in results]})
        return
    table = Table()
    for heading in ("day", "run", "events", "duplicates", "dead letters", "published"):
        table.add_column(heading, justify="right" if heading in {"events", "duplicates", "dead letters"} else "left")
    for result in results:
        counts = (f"{number:,}" for number in (result.events, result.duplicates, result.dead_letters))
        table.add_row(str(result.partition), result.run_id, *counts, "yes" if result.published else "no")
    out.print(table)


def reconcile(first: _First, last: _Last, catalog: CatalogOption = None, as_json: JsonOption = False) -> None:
    """Compare published days with the speed layer, by cause, and certify them. A residual is exit code 1."""
    speak_json(as_json)
    from reconciliation.reconcile import reconcile as compare  # noqa: PLC0415 - as above
    from reconciliation.result import summaries  # noqa: PLC0415

    definition = load(catalog)
    results = compare(settings(), definition, days_between(parse_day(first), parse_day(last)))
    if as_json:
        print_json(summaries(results))
    else:
        table = Table()
        for heading in ("day", "certified", "speed layer", "residual", "causes"):
            table.add_column(heading)
        for result in results:
            causes = ", ".join(f"{cause} {number:,}" for cause, number in result.causes.items() if number)
            certified = "[green]yes[/]" if result.certified else "[red]no[/]"
            table.add_row(str(result.partition), certified, result.verdict, f"{result.residual:,}", causes)
        out.print(table)
        for result in results:
            if result.message:
                err.print(result.message, highlight=False)
    if any(result.problem for result in results):
        raise Failed


def _show_plan(plan: Any, definition: Catalog, as_json: bool) -> None:  # noqa: ANN401 - a Plan, imported late
    if not as_json:
        out.print("\n".join(plan.lines(definition)), highlight=False, markup=False)
        return
    unknown = {"run_id": None, "events": None, "duplicates": None, "dead_letters": None, "published": False}
    partitions = [{"partition": day.isoformat(), **unknown} for day in plan.days]
    print_json({"partitions": partitions, "ranges": [asdict(each) for each in plan.ranges]})
