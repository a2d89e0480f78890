"""What the demo shows at its end: windows of both layers side by side, the report, and where to look on."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.catalog_file import load_catalog
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog, Metric
from orchestration.demo import Outcome
from reconciliation.report import reports_dir
from reconciliation.result import PartitionReconciliation
from serving.query import Query, Row, iso, rows

_ROWS_PER_METRIC = 2
_CAUSES = ("late", "duplicate", "dead_letter")
MIB = 1024 * 1024


def print_summary(console: Console, settings: Settings, outcome: Outcome) -> None:
    """Print the table of windows, the reconciliation by day, the report's path and the addresses."""
    catalog = load_catalog(outcome.catalog_path)
    console.print()
    console.print(_windows(settings, catalog, outcome))
    console.print(_days(outcome))
    if outcome.truth:
        told = truth_line(outcome.truth, outcome.days)
        console.print(f"ground truth that no layer can read: {told}", highlight=False)
    reports = reports_dir(settings, catalog.source)
    last = outcome.days[-1].partition if outcome.days else None
    memory = sum(each.rss_bytes for each in outcome.services)
    lag = "" if outcome.lag_s is None else f"; the live windows are {outcome.lag_s:.1f} s behind the clock"
    console.print(f"report     {reports / f'{last}.html'}", soft_wrap=True)
    console.print(f"dashboard  http://{settings.host}:{settings.api_port}", highlight=False)
    console.print(f"Dagster    http://{settings.host}:{settings.dagster_port}", highlight=False)
    console.print(
        f"[dim]{outcome.seconds:.0f} s in all; the stack takes {memory / MIB:,.0f} MiB{lag}. "
        "it stays up: `make down` stops it[/]",
        highlight=False,
    )


def _windows(settings: Settings, catalog: Catalog, outcome: Outcome) -> Table:
    table = Table(title="each window once: batch where its day is certified, else speed", title_justify="left")
    for heading in ("metric", "window", "of"):
        table.add_column(heading)
    table.add_column("value", justify="right")
    table.add_column("layer")
    table.add_column("drift", justify="right")
    client, database = connect(settings), settings.database(catalog.source)
    for metric in catalog.metrics:
        for query in _queries(metric, outcome):
            for row in _largest(rows(client, database, query)):
                table.add_row(metric.name, _window(row, query.grain), *_cells(row))
        table.add_section()
    return table


def _queries(metric: Metric, outcome: Outcome) -> Iterator[Query]:
    """The last closed day in the widest grain, and the latest windows in the narrowest."""
    widest = max(metric.windows, key=lambda window: window.size)
    narrowest = min(metric.windows, key=lambda window: window.size)
    if outcome.days and outcome.days[-1].examined:
        begin = datetime.combine(outcome.days[-1].partition, time(), UTC)
        yield Query(metric, widest.grain, begin, begin + timedelta(days=1))
    yield Query(metric, narrowest.grain, limit=100)


def _largest(found: Sequence[Row]) -> list[Row]:
    """The largest dimensions of the latest window."""
    if not found:
        return []
    latest = max(row.window_start for row in found)
    now = [row for row in found if row.window_start == latest]
    return sorted(now, key=lambda row: row.value, reverse=True)[:_ROWS_PER_METRIC]


def _window(row: Row, grain: str) -> str:
    start = iso(row.window_start)
    return start[:10] if grain.endswith("d") else f"{start[11:16]} +{grain}"


def _cells(row: Row) -> tuple[str, str, str, str]:
    value = f"{row.value:,}"
    if row.lower is not None and row.upper is not None:
        value += f" ({row.lower:,.0f} to {row.upper:,.0f})"
    layer = f"[green]{row.layer}[/]" if row.layer == "batch" else f"[yellow]{row.layer}[/]"
    return ", ".join(row.dimensions.values()), value, layer, "" if row.drift is None else f"{row.drift:+,.10g}"


def _days(outcome: Outcome) -> Table:
    table = Table(title="closed days", title_justify="left")
    for heading in ("day", "certified", "speed layer", "residual", *(cause.replace("_", " ") for cause in _CAUSES)):
        table.add_column(heading, justify="left" if heading in {"day", "certified", "speed layer"} else "right")
    for day in outcome.days:
        certified = "[green]yes[/]" if day.certified else "[red]no[/]"
        colour = "red" if day.residual else "green"
        causes = (f"{day.causes.get(cause, 0):,}" for cause in _CAUSES)
        table.add_row(str(day.partition), certified, day.verdict, f"[{colour}]{day.residual:,}[/]", *causes)
    return table


def truth_line(truth: Mapping[str, Any], days: Sequence[PartitionReconciliation]) -> str:
    """Whether reconciliation found exactly the late, repeated and bad events that the generator made."""
    parts = []
    for cause in _CAUSES:
        known = [day for day in days if day.partition.isoformat() in truth["by_day"]]
        made = sum(truth["by_day"][day.partition.isoformat()]["dispositions"][cause] for day in known)
        found = sum(day.causes.get(cause, 0) for day in known)
        mark = "[green]✓[/]" if made == found else "[red]x[/]"
        parts.append(f"{cause.replace('_', ' ')} {made:,} made, {found:,} found {mark}")
    return "; ".join(parts)
