"""`alerts`: what was raised live, latest first."""

from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client
from rich.table import Table

from infra.clickhouse import connect
from orchestration.cli.common import (
    CatalogOption,
    JsonOption,
    SourceOption,
    UserError,
    counted,
    load,
    out,
    print_json,
    settings,
)
from serving.alert_tables import ALERTS
from serving.alerts import DEFAULT_LIMIT, Raised, build, definitions, raised
from serving.query import iso

_EVIDENCE_SHOWN = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Reading")(alerts)


def alerts(  # noqa: PLR0913, PLR0917 - options of a command
    name: Annotated[str | None, typer.Argument(help="Name of an alert of the catalog.", show_default="all")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="T", help="Breached then or later, ISO 8601.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="T", help="Breached before this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most alerts; of more, the latest.")] = DEFAULT_LIMIT,
    catalog: CatalogOption = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List alerts that were raised live, latest first."""
    sources = [one.catalog for one in load(catalog, source)]
    if name is not None:
        sources = [one for one in sources if any(alert.name == name for alert in one.alerts)] or sources[:1]
    questions = [build(one, name, start, end, limit) for one in sources]
    where = settings()
    client = connect(where, wait_seconds=2.0)
    found: list[tuple[str, Raised]] = []
    for one, question in zip(sources, questions, strict=True):
        database = where.database(one.source)
        if question.alerts:
            _require_table(client, database, one.source)
            found += [(one.source, each) for each in raised(client, database, question)]
    found = sorted(found, key=lambda pair: pair[1].breached_at, reverse=True)[:limit]
    if as_json:
        known = [
            {"source": one.source, **d}
            for one, q in zip(sources, questions, strict=True)
            for d in definitions(q.alerts)
        ]
        print_json({"definitions": known, "alerts": [{"source": owner, **each.as_json()} for owner, each in found]})
        return
    out.print(table_of(found, several=len(sources) > 1))
    if len(found) == limit:
        out.print(f"the latest {limit:,} alerts; --limit shows more")


def _require_table(client: Client, database: str, source: str) -> None:
    known = "SELECT count() FROM system.tables WHERE database = {database:String} AND name = {name:String}"
    if not client.query(known, parameters={"database": database, "name": ALERTS}).result_rows[0][0]:
        msg = f"source `{source}` has no tables yet. make them by `lockstep up`, or run a layer"
        raise UserError(msg)


def table_of(found: list[tuple[str, Raised]], *, several: bool) -> Table:
    """Alerts as a table, with their source where there are several."""
    table = Table(title=counted(len(found), "alert"), title_justify="left")
    for heading in ("breached", *(["source"] if several else []), "alert", "key"):
        table.add_column(heading)
    for heading in ("value", "threshold"):
        table.add_column(heading, justify="right")
    table.add_column("evidence")
    for owner, one in found:
        more = len(one.evidence) - _EVIDENCE_SHOWN
        shown = ", ".join(one.evidence[:_EVIDENCE_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        key = ", ".join(f"{name}={value}" for name, value in one.dims.items())
        figures = (f"{one.value:,.10g}", f"{one.threshold:,.10g}", shown)
        table.add_row(iso(one.breached_at), *([owner] if several else []), one.alert, key, *figures)
    return table
