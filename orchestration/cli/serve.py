"""`query` and `report`: the numbers, and why they differ."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from infra.clickhouse import connect
from orchestration.cli.common import (
    CatalogOption,
    Failed,
    JsonOption,
    UserError,
    catalog_path,
    out,
    parse_day,
    print_json,
    settings,
    speak_json,
)
from orchestration.cli.common import catalog as load
from serving.query import LAYERS, Query, Row, build, iso, rows
from serving.status import read_status

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
    layer: Annotated[str, typer.Option(help=f"Which numbers: {', '.join(LAYERS)}.")] = "served",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most rows; of more, the latest.", show_default="10,000; 50 as a table")
    ] = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a metric's windows, each once: from batch where its day is certified, else from speed."""
    speak_json(as_json)
    definition = load(catalog)
    most = limit or (10_000 if as_json else 50)
    question = build(definition, metric, grain, start, end, by or (), layer, most)
    where = settings()
    client = connect(where, wait_seconds=2.0)
    database = where.database(definition.source)
    _require_views(client, database, definition.source)
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
    for heading in ("window", *question.metric.by):
        table.add_column(heading)
    for heading in ("value", "bounds"):
        table.add_column(heading, justify="right")
    for heading in ("layer", "status"):
        table.add_column(heading)
    table.add_column("drift", justify="right")
    for row in found:
        bounds = "" if row.lower is None or row.upper is None else f"{row.lower:,.0f} to {row.upper:,.0f}"
        table.add_row(
            iso(row.window_start),
            *row.dimensions.values(),
            f"{row.value:,}",
            bounds,
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
        Path | None, typer.Option("--out", help="Folder for the files.", show_default=".lockstep/reports/SOURCE")
    ] = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a day's reconciliation report as HTML and JSON; --json prints it instead of the files' paths."""
    speak_json(as_json)
    from reconciliation.report import build as report_document  # noqa: PLC0415 - only this command draws
    from reconciliation.report import write_report  # noqa: PLC0415

    definition = load(catalog)
    where = settings()
    client = connect(where, wait_seconds=2.0)
    _require_views(client, where.database(definition.source), definition.source)
    wanted = parse_day(day) if day else _latest_day(client, where.database(definition.source), catalog)
    document = report_document(where, definition, wanted, client=client)
    if as_json:
        print_json(document)
    else:
        paths = write_report(where, definition, wanted, out_dir, client=client)
        out.print(f"{wanted}: {document['headline']['verdict']}")
        out.print(f"report: {paths.html}\n        {paths.json}", soft_wrap=True)
    if document["headline"]["verdict"] not in _SOUND:
        raise Failed


def _require_views(client: Any, database: str, source: str) -> None:  # noqa: ANN401 - the driver's client
    sql = "SELECT count() FROM system.tables WHERE database = {database:String} AND name = 'publications'"
    if not client.query(sql, parameters={"database": database}).result_rows[0][0]:
        msg = f"source `{source}` has no tables yet. make them by `lockstep up`, or run a layer"
        raise UserError(msg)


def _latest_day(client: Any, database: str, catalog: Path | None) -> Any:  # noqa: ANN401 - the driver's client
    days = read_status(client, database).days
    if not days:
        msg = f"no day of `{catalog_path(catalog).stem}` is published yet. run `lockstep batch --from DAY --to DAY`"
        raise UserError(msg)
    return days[-1].partition
