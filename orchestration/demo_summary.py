"""What the demo shows at its end: windows of both layers side by side, the reports, and where to look on."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import ShownMetric
from metrics.window import AnyWindow, GlobalWindow, SessionWindow
from orchestration.demo import Outcome, SourceOutcome
from reconciliation.report import reports_dir
from reconciliation.result import PartitionReconciliation
from serving.figures import figure, rank, with_unit
from serving.query import Query, Row, iso, rows

_CAUSES = ("late", "duplicate", "dead_letter")
_LARGEST_PAST_S = 7_200.0
MIB = 1024 * 1024


def print_summary(console: Console, settings: Settings, outcome: Outcome) -> None:
    """Print a table of windows per source, the reconciliation by day, the reports' paths and the addresses."""
    console.print()
    for source in outcome.sources:
        console.print(_windows(settings, source))
    console.print(_days(outcome.sources))
    for source in outcome.sources:
        if source.truth:
            told = truth_line(source.truth, source.days)
            console.print(f"ground truth of {source.catalog.source}, that no layer can read: {told}", highlight=False)
    for source in outcome.sources:
        if source.days:
            report = reports_dir(settings, source.catalog.source) / f"{source.days[-1].partition}.html"
            console.print(f"report     {report}", soft_wrap=True)
    memory = sum(each.rss_bytes for each in outcome.services)
    lag = max(source.lag_s for source in outcome.sources)
    console.print(f"dashboard  http://{settings.host}:{settings.api_port}", highlight=False)
    console.print(f"Dagster    http://{settings.host}:{settings.dagster_port}", highlight=False)
    console.print(
        f"[dim]{outcome.seconds:.0f} s in all; the stack takes {memory / MIB:,.0f} MiB; "
        f"the live windows are {lag:.1f} s behind the clock. it stays up: `make down` stops it[/]",
        highlight=False,
    )


def _windows(settings: Settings, source: SourceOutcome) -> Table:
    """Every metric with its largest value of the last closed day and of its latest window."""
    closed = source.days[-1] if source.days and source.days[-1].examined else None
    named = f": {closed.partition}, certified by the batch layer, and now" if closed else ""
    table = Table(title=f"{source.catalog.source}{named}", title_justify="left")
    for heading in ("metric", "closed day", "drift", "layer", "latest window", "value", "layer"):
        table.add_column(heading, justify="right" if heading in {"closed day", "drift", "value"} else "left")
    client, database = connect(settings), settings.database(source.catalog.source)

    def largest(query: Query) -> Row | None:
        """Of the latest window, the dimensions with the largest value."""
        found = rows(client, database, query)
        latest = max((row.window_start for row in found), default=None)
        now = [row for row in found if row.window_start == latest]
        return max(now, key=lambda row: rank(row.value), default=None)

    for metric in source.catalog.shown:
        day = largest(_of_day(metric, closed)) if closed else None
        now = largest(_latest(metric))
        drift = "" if day is None or day.drift is None else f"{day.drift:+,.10g}"
        table.add_row(
            metric.name,
            *((_value(metric, day), drift, _layer(day)) if day else ("", "", "")),
            *((_window(metric, now), _value(metric, now), _layer(now)) if now else ("", "", "")),
        )
    return table


def _of_day(metric: ShownMetric, day: PartitionReconciliation) -> Query:
    """The widest windows that begin on a day."""
    begin = datetime.combine(day.partition, time(), UTC)
    widest = max(_bounded(metric), key=lambda window: window.size)
    return Query(metric, widest.grain, begin, begin + timedelta(days=1))


def _latest(metric: ShownMetric) -> Query:
    """The narrowest windows, up to now."""
    narrowest = min(_bounded(metric), key=lambda window: window.size)
    past = timedelta(seconds=_LARGEST_PAST_S) + 2 * narrowest.size
    return Query(metric, narrowest.grain, datetime.now(UTC) - past, limit=1_000)


def _bounded(metric: ShownMetric) -> list[AnyWindow]:
    """Its windows without the global one, where it has others."""
    return [window for window in metric.windows if not isinstance(window, GlobalWindow)] or list(metric.windows)


def _window(metric: ShownMetric, row: Row) -> str:
    start, length = row.window_start, row.window_end - row.window_start
    if isinstance(metric.windows[0], SessionWindow):
        return f"from {iso(start)[11:16]}"
    return iso(start)[:10] if length >= timedelta(days=1) else f"{iso(start)[11:16]} +{length // timedelta(minutes=1)}m"


def _value(metric: ShownMetric, row: Row) -> str:
    value = with_unit(metric, figure(metric, row.value))
    if row.lower is not None and row.upper is not None:
        value += f" ({figure(metric, row.lower)} to {figure(metric, row.upper)})"
    of = ", ".join(row.dimensions.values())
    return escape(f"{of}: {value}" if of else value)


def _layer(row: Row) -> str:
    return f"[green]{row.layer}[/]" if row.layer == "batch" else f"[yellow]{row.layer}[/]"


def _days(sources: Sequence[SourceOutcome]) -> Table:
    table = Table(title="closed days", title_justify="left")
    texts = ("source", "day", "certified", "speed layer")
    for heading in (*texts, "residual", *(cause.replace("_", " ") for cause in _CAUSES)):
        table.add_column(heading, justify="left" if heading in texts else "right")
    for source in sources:
        for day in source.days:
            certified = "[green]yes[/]" if day.certified else "[red]no[/]"
            colour = "red" if day.residual else "green"
            causes = (f"{day.causes.get(cause, 0):,}" for cause in _CAUSES)
            cells = (str(day.partition), certified, day.verdict, f"[{colour}]{day.residual:,}[/]", *causes)
            table.add_row(source.catalog.source, *cells)
        table.add_section()
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
