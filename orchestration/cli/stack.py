"""`up`, `down`, `status`: the local stack as supervised processes."""

from typing import Annotated

import typer
from rich.table import Table

from infra import stack
from infra.stack import ServiceStatus
from orchestration import services
from orchestration.cli.common import (
    CatalogOption,
    Failed,
    JsonOption,
    SourceOption,
    catalog_path,
    err,
    out,
    print_json,
    settings,
)

MIB = 1024 * 1024


def register(app: typer.Typer) -> None:
    """Add the stack's commands."""
    for command in (up, down, status):
        app.command(rich_help_panel="Local stack")(command)


def up(
    catalog: CatalogOption = None,
    source: SourceOption = None,
    engines_only: Annotated[
        bool,
        typer.Option("--engines-only", help="Start Kafka, ClickHouse and Flink, nothing above them."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start what is not running: Kafka, ClickHouse, Flink, then a speed layer for each source, Dagster and API for all.

    Everything listens on loopback and keeps its data under `.lockstep/`. Run again, it starts only what is missing.
    """
    where = settings()
    with err.status("starting the stack") as line:
        if engines_only:
            states = services.start(where, services.engines(where), line.update)
        else:
            states = services.start_all(where, catalog_path(catalog, source), line.update)
    _show(states, as_json)


def down(as_json: JsonOption = False) -> None:
    """Stop every process of the stack; its data stays. Run again, it has nothing to do."""
    with err.status("stopping the stack"):
        stack.down(settings())
    if as_json:
        print_json(_document([]))
    else:
        out.print("the stack is down")


def status(as_json: JsonOption = False) -> None:
    """Say of every service whether it runs, where it listens and how much memory it takes."""
    states = stack.status(settings())
    _show(states, as_json)
    if any(each.state != "running" for each in states):
        raise Failed


def _document(states: list[ServiceStatus]) -> dict[str, object]:
    return {
        "services": [
            {
                "name": each.name,
                "state": each.state,
                "pid": each.pid,
                "address": each.address,
                "rss_bytes": each.rss_bytes,
            }
            for each in states
        ]
    }


def _show(states: list[ServiceStatus], as_json: bool) -> None:
    if as_json:
        print_json(_document(states))
        return
    if not states:
        out.print("the stack is down. `lockstep up` starts it")
        return
    table = Table()
    for heading in ("service", "state", "pid", "address"):
        table.add_column(heading)
    table.add_column("memory", justify="right")
    for each in states:
        colour = "green" if each.state == "running" else "red"
        memory = f"{each.rss_bytes / MIB:,.0f} MiB" if each.rss_bytes else ""
        table.add_row(each.name, f"[{colour}]{each.state}[/]", str(each.pid or ""), each.address or "", memory)
    total = sum(each.rss_bytes or 0 for each in states)
    table.caption = f"{total / MIB:,.0f} MiB in all"
    out.print(table)
