"""`up`, `down`, `status`: the local stack as supervised processes."""

from typing import Annotated, Any

import typer
from clickhouse_connect.driver.exceptions import ClickHouseError
from rich.table import Table

from infra import stack
from infra.clickhouse import ClickHouseUnavailableError, connect
from infra.settings import Settings
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
_ACCOUNTS = ("watermark", "ledger_check", "lag", "alarms")
"""What `status` says of a speed layer."""


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
        print_json(_document([], []))
    else:
        out.print("the stack is down")


def status(as_json: JsonOption = False) -> None:
    """Say of every service whether it runs, of every speed layer how far behind it is and whether its ledger closes."""
    where = settings()
    states = stack.status(where)
    accounts = _accounts(where, states)
    _show(states, as_json, accounts)
    if any(each.state != "running" for each in states) or any(map(_is_open, accounts)):
        raise Failed


def _accounts(where: Settings, states: list[ServiceStatus]) -> list[dict[str, Any]]:
    """The accounts of sources with a speed layer, as the API prints them; of those whose tables answer."""
    from serving.status import read_status  # noqa: PLC0415 - `up` and `down` need no views

    found = []
    for each in states:
        if each.name.startswith(services.SPEED):
            source = each.name.removeprefix(services.SPEED)
            try:
                said = read_status(connect(where, wait_seconds=0.0), where.database(source)).as_json()
            except (ClickHouseError, ClickHouseUnavailableError, OSError):
                continue
            found.append({"source": source, **{name: said[name] for name in _ACCOUNTS}})
    return found


def _is_open(account: dict[str, Any]) -> bool:
    return account["ledger_check"] is not None and not account["ledger_check"]["closes"]


def _document(states: list[ServiceStatus], accounts: list[dict[str, Any]]) -> dict[str, object]:
    return {
        **({"sources": accounts} if accounts else {}),
        "services": [
            {
                "name": each.name,
                "state": each.state,
                "pid": each.pid,
                "address": each.address,
                "rss_bytes": each.rss_bytes,
            }
            for each in states
        ],
    }


def _show(states: list[ServiceStatus], as_json: bool, accounts: list[dict[str, Any]] | None = None) -> None:
    if as_json:
        print_json(_document(states, accounts or []))
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
    for account in accounts or []:
        out.print("\n".join(_lines(account)), highlight=False, markup=False)


def _lines(account: dict[str, Any]) -> list[str]:
    """Watermark and ledger of a source's speed layer, and lag and skew of each topic partition."""
    check, lags = account["ledger_check"], account["lag"]
    lines = [f"{account['source']}: watermark {account['watermark'] or 'none yet'}"]
    if check is None:
        lines.append("  ledger: not checked yet")
    elif check["closes"]:
        lines.append(f"  ledger: closes since {check['since']}, checked {check['checked_at']}")
    else:
        lines.append(f"  ledger: does not close since {check['since']}: {check['text']}")
    for lag in lags:
        behind = f"{lag['lag_offsets']:,} offsets, {_time(lag['lag_seconds'])} behind"
        lines.append(f"  partition {lag['topic_partition']}: {behind}; skew {_time(lag['skew_seconds'])}")
    return lines


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds:,.1f} s"
