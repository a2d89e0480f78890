"""`query` and `report`: the numbers, and why they differ."""

from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client
from rich.table import Table

from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from orchestration.cli.common import (
    CatalogOption,
    Failed,
    JsonOption,
    SourceOption,
    UserError,
    load,
    out,
    parse_day,
    print_json,
    settings,
)
from orchestration.sources import owner_of_metric
from serving.figures import figure
from serving.query import LAYERS, Query, Row, build, iso, rows
from serving.status import read_status
from serving.versions import kept_beside
from serving.views import dimensions

_SOUND = {"clean", "not_yet_closed"}


def register(app: typer.Typer) -> None:
    """Add the reading commands."""
    for command in (query, report):
        app.command(rich_help_panel="Reading")(command)


def query(  # noqa: PLR0913, PLR0917 - options of a command
    metric: Annotated[str, typer.Argument(help="Name of a metric of the catalog.")],
    grain: Annotated[str | None, typer.Option(help="Such as 1m.", show_default="the metric's first")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="T", help="First window start, ISO 8601 UTC.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="T", help="Window starts before this.")] = None,
    by: Annotated[
        list[str] | None, typer.Option("--by", metavar="NAME=VALUE", help="Only this value; may be repeated.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help=f"Which numbers: {', '.join(LAYERS)}.", show_default="served")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most rows; of more, the latest.", show_default="10,000; 50 as a table")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option("--metric-version", metavar="V", help="A version of the metric.", show_default="the one shown"),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="T", help="What batch had published by this time.", show_default="now"),
    ] = None,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a metric's windows, each once: from batch where its day is certified, else from speed."""
    definition = owner_of_metric(load(catalog, source), metric).catalog
    build(definition, metric)  # that there is no such metric is said whether a server answers or not
    most = limit or (10_000 if as_json else 50)
    where = settings()
    client = connect(where, wait_seconds=2.0)
    database = where.database(definition.source)
    _require_views(client, database, definition.source)
    beside = version and kept_beside(client, database, metric, version)
    question = build(definition, metric, grain, start, end, by or (), layer, most, beside, as_of)
    found = rows(client, database, question)
    if as_json:
        print_json({"metric": question.metric.name, "grain": question.grain, "rows": [row.as_json() for row in found]})
        return
    out.print(table_of(question, found))
    if len(found) == most:
        out.print(f"the latest {most:,} windows; --limit shows more")


def table_of(question: Query, found: list[Row]) -> Table:
    """A metric's windows as a table."""
    table = Table(title=f"{question.metric.name} by {question.grain}", title_justify="left")
    for heading in ("window", *dimensions(question.metric)):
        table.add_column(heading)
    for heading in ("value", "bounds"):
        table.add_column(heading, justify="right")
    for heading in ("layer", "status"):
        table.add_column(heading)
    table.add_column("drift", justify="right")
    metric = question.metric
    for row in found:
        exact = row.lower is None or row.upper is None
        table.add_row(
            iso(row.window_start),
            *row.dimensions.values(),
            figure(metric, row.value),
            "" if exact else f"{figure(metric, row.lower)} to {figure(metric, row.upper)}",
            row.layer,
            row.status,
            "" if row.drift is None else f"{row.drift:+,.10g}",
        )
    return table


def report(
    day: Annotated[
        str | None, typer.Option("--date", metavar="DAY", help="UTC day.", show_default="the latest published")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the files; of several sources, one in it each.",
            show_default=".lockstep/reports/SOURCE",
        ),
    ] = None,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a day's reconciliation report as HTML and JSON; --json prints it instead of the files' paths.

    Of several sources a report each; with --json, as `{"reports": [...]}`.
    """
    from reconciliation.report import build as report_document  # noqa: PLC0415 - only this command draws
    from reconciliation.report import write_report  # noqa: PLC0415

    sources = load(catalog, source)
    where = settings()
    client = connect(where, wait_seconds=2.0)
    wanted = [_day_of_report(client, where, each.catalog, day) for each in sources]
    documents = []
    for each, at in zip(sources, wanted, strict=True):
        document = report_document(where, each.catalog, at, client=client)
        documents.append(document)
        if as_json:
            continue
        folder = out_dir / each.name if out_dir and len(sources) > 1 else out_dir
        paths = write_report(where, each.catalog, at, folder, client=client)
        out.print(f"{each.name} {at}: {document['headline']['verdict']}")
        out.print(f"report: {paths.html}\n        {paths.json}", soft_wrap=True)
    if as_json:
        print_json(documents[0] if len(documents) == 1 else {"reports": documents})
    if any(document["headline"]["verdict"] not in _SOUND for document in documents):
        raise Failed


def _day_of_report(client: Client, where: Settings, catalog: Catalog, day: str | None) -> date:
    """The day asked for, else the latest that is published."""
    database = where.database(catalog.source)
    _require_views(client, database, catalog.source)
    if day:
        return parse_day(day)
    days = read_status(client, database).days
    if not days:
        msg = f"no day of `{catalog.source}` is published yet. run `lockstep batch --from DAY --to DAY`"
        raise UserError(msg)
    return days[-1].partition


def _require_views(client: Client, database: str, source: str) -> None:
    sql = "SELECT count() FROM system.tables WHERE database = {database:String} AND name = 'publications'"
    if not client.query(sql, parameters={"database": database}).result_rows[0][0]:
        msg = f"source `{source}` has no tables yet. make them by `lockstep up`, or run a layer"
        raise UserError(msg)
