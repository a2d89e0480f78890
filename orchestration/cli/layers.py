"""`speed`, `batch`, `reconcile`: the two layers and the judge between them."""

import os
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from orchestration.cli.common import (
    FOUND,
    CatalogOption,
    Failed,
    JsonOption,
    SourceOption,
    counted,
    days_between,
    err,
    fail,
    load,
    load_one,
    of_source,
    out,
    parse_day,
    print_json,
    settings,
)
from orchestration.progress import progress_bar
from orchestration.sources import SourceFile

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
    source: SourceOption = None,
) -> None:
    """Run the speed layer: Beam on Flink, from the log to the tables, until stopped (it drains on SIGTERM).

    It is a job of one source; `lockstep up` starts one for each.
    """
    # A bad catalog is refused before anything starts.
    file = load_one("`lockstep speed`", catalog, source).path
    arguments = ["--until-drained"] if until_drained else []
    # This process becomes the speed layer, so that a signal, kill -9 included, reaches it and nothing is left behind.
    command = [sys.executable, "-m", "speed_layer", "--catalog", str(file), *arguments]
    os.execv(sys.executable, command)


def batch(
    first: _First,
    last: _Last,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read; compute nothing.")] = False,
    allow_open: Annotated[
        bool, typer.Option("--allow-open", help="Compute a day even though events that count may still come.")
    ] = False,
    reindex: Annotated[
        bool, typer.Option("--reindex", help="Read the whole log again for its index: after a fix to schemas.")
    ] = False,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute days exactly from the log and publish them at once; of several sources, one after the other.

    A range of days is one Spark run, and all sources share its session. No source is computed when one is refused.
    """
    from batch_layer.planning import plan_days  # noqa: PLC0415 - Spark takes a second to import
    from batch_layer.publish import WriteError  # noqa: PLC0415
    from batch_layer.sources import run_all  # noqa: PLC0415

    sources = load(catalog, source)
    days = days_between(parse_day(first), parse_day(last))
    where = settings()
    if dry_run:
        with progress_bar(err) as told:
            plans = [
                plan_days(where, each.catalog, days, allow_open=allow_open, reindex=reindex, told=told)
                for each in sources
            ]
        _show_plans(sources, plans, as_json)
        return
    with progress_bar(err) as told:
        try:
            catalogs = [each.catalog for each in sources]
            results = run_all(where, catalogs, days, allow_open=allow_open, reindex=reindex, told=told)
        except WriteError as error:
            fail(str(error), FOUND)
    found = [(each, result) for each, of_it in zip(sources, results, strict=True) for result in of_it]
    if as_json:
        print_json({"partitions": [of_source(each, sources, result.as_json()) for each, result in found]})
        return
    table = Table()
    for heading in ("source", "day", "run", "events", "duplicates", "dead letters", "published"):
        table.add_column(heading, justify="right" if heading in {"events", "duplicates", "dead letters"} else "left")
    for each, result in found:
        counts = (f"{number:,}" for number in (result.events, result.duplicates, result.dead_letters))
        published = "yes" if result.published else "no"
        table.add_row(each.name, str(result.partition), result.run_id, *counts, published)
    out.print(table)


def reconcile(
    first: _First,
    last: _Last,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare published days with the speed layer, by cause, and certify them. A residual is exit code 1."""
    from reconciliation.reconcile import reconcile as compare  # noqa: PLC0415 - as above

    sources = load(catalog, source)
    days, where = days_between(parse_day(first), parse_day(last)), settings()
    results = [(each, result) for each in sources for result in compare(where, each.catalog, days)]
    if as_json:
        print_json({"partitions": [of_source(each, sources, result.summary()) for each, result in results]})
    else:
        table = Table()
        for heading in ("source", "day", "certified", "speed layer", "residual", "causes"):
            table.add_column(heading)
        for each, result in results:
            causes = ", ".join(f"{cause} {number:,}" for cause, number in result.causes.items() if number)
            causes += f"; {counted(result.repaired, 'dead letter')} repaired" if result.repaired else ""
            certified = "[green]yes[/]" if result.certified else "[red]no[/]"
            cells = (str(result.partition), certified, result.verdict, f"{result.residual:,}", causes)
            table.add_row(each.name, *cells)
        out.print(table)
        for _, result in results:
            if result.message:
                err.print(result.message, highlight=False)
    if any(result.problem for _, result in results):
        raise Failed


def _show_plans(sources: tuple[SourceFile, ...], plans: list[Any], as_json: bool) -> None:  # plans are imported late
    if not as_json:
        for each, plan in zip(sources, plans, strict=True):
            out.print("\n".join(plan.lines(each.catalog)), highlight=False, markup=False)
        return
    unknown = {"run_id": None, "events": None, "duplicates": None, "dead_letters": None, "published": False}
    planned = list(zip(sources, plans, strict=True))
    partitions = [
        of_source(each, sources, {"partition": day.isoformat(), **unknown})
        for each, plan in planned
        for day in plan.days
    ]
    ranges = [of_source(each, sources, asdict(part)) for each, plan in planned for part in plan.ranges]
    print_json({"partitions": partitions, "ranges": ranges})
