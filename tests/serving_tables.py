"""Fills the tables of a source as both layers would, for tests of what is served."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
from clickhouse_connect.driver.client import Client

from infra.catalog_file import load_catalog
from infra.clickhouse import connect, insert_frame, quote
from infra.settings import Settings
from metrics.catalog import Catalog, Metric
from metrics.fold import Group, groups, merge_states, metric_rows, partial_states, selected, session_rows
from metrics.window import from_epoch_ms, to_epoch_ms
from serving import schema
from serving.source import Source

CATALOG = """
source: {source}
topic: events.{source}
event_id: id
event_time: {{field: ts, unit: ms}}
allowed_lateness: 1h
key: user
fields:
  kind: string
  country: string
  user: string
  amount: {{type: decimal, scale: 2}}
  page: string
  took: float
  counted: int
  change: int
  flag: bool
metrics:
  events:   {{agg: count, window: [tumbling 1m, tumbling 1d]}}
  revenue:  {{agg: sum(amount), where: kind = 'buy', by: [country], window: [tumbling 1h, tumbling 1d]}}
  visitors: {{agg: distinct(user), window: [tumbling 5m, tumbling 1d]}}
"""

TIME = pl.Datetime("ms", "UTC")
_FRAME = {
    "event_time": pl.Int64(),
    "f_kind": pl.String(),
    "f_country": pl.String(),
    "f_user": pl.String(),
    "f_amount": pl.Decimal(38, 2),
    "f_page": pl.String(),
    "f_took": pl.Float64(),
    "f_counted": pl.Int64(),
    "f_change": pl.Int64(),
    "f_flag": pl.Boolean(),
}

OTHER_CATALOG = """
source: {source}
topic: other.v1
event_id: id
event_time: {{field: at, unit: ms}}
fields:
  site: {{type: string, default: ""}}
  ok: {{type: bool}}
metrics:
  readings: {{agg: count, by: [site], window: tumbling 1h}}
alerts:
  failing: {{when: count > 3, where: ok = false, by: [site], within: 2m}}
"""
"""A source beside the other, with names of its own."""


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Event:
    time: datetime
    kind: str = "view"
    country: str = "DE"
    user: str | None = "u1"
    amount: Decimal | None = field(default=Decimal(0))
    page: str | None = None
    took: float | None = None
    counted: int | None = None
    change: int | None = None
    flag: bool | None = None


@dataclass(frozen=True)
class Tables:
    """One source's tables: `speed` folds events as the speed layer does, `batch` as the batch layer does."""

    client: Client
    catalog: Catalog
    source: Source
    database: str

    @classmethod
    def create(cls, settings: Settings, name: str, directory: Path, text: str = CATALOG) -> "Tables":
        path = directory / f"{name}.yaml"
        path.write_text(text.format(source=name), encoding="utf-8")
        catalog = load_catalog(path)
        database = settings.database(catalog.source)
        client = connect(settings)
        schema.apply(client, catalog, database)
        return cls(client, catalog, Source(settings, catalog), database)

    def speed(self, events: Iterable[Event], pane: str = "on_time", version: str | None = None) -> None:
        for _, metric, rows in self._states(events):
            written = rows.with_columns(
                pl.lit(version or metric.metric_version).alias("metric_version"), pl.lit(pane).alias("pane")
            )
            insert_frame(self.client, self._name(f"speed_{metric.name}"), written)

    def tombstone(self, metric: str, session: datetime, user: str, chain_events: int, *dimensions: str) -> None:
        """What the speed layer writes of a session that has become part of another."""
        defined = self.catalog.metric(metric)
        columns = ["metric_version", "window_start", "window_end", "session_key", *defined.by]
        row = [defined.metric_version, session, session, user, *dimensions, chain_events, 1]
        names = [*columns, "chain_events", "is_deleted"]
        self.client.insert(self._name(f"speed_{metric}"), [row], column_names=names)

    def batch(
        self, run: str, events: Iterable[Event], reading: str = "exact", only: tuple[str, ...] | None = None
    ) -> None:
        """Exact rows of a run, in the partitions that own them: of slices their day, of sessions that of their end."""
        events = list(events)
        for group, metric, rows in self._states(events):
            if only is not None and metric.name not in only:
                continue
            exact = (
                self._items(group, metric, events) if metric.agg.by_value else rows.drop("chain_events", strict=False)
            )
            last = pl.col("window_end") - pl.duration(milliseconds=1) if metric.session else pl.col("slice_start")
            written = exact.with_columns(
                pl.lit(run).alias("run_id"),
                last.dt.date().alias("partition"),
                pl.lit(metric.metric_version).alias("metric_version"),
                pl.lit(reading).alias("reading"),
            )
            for _, part in written.group_by("partition"):
                insert_frame(self.client, self._name(f"batch_{metric.name}"), part)

    def publish(self, day: date, run: str, metrics: Iterable[str] | None = None) -> None:
        names = [metric.name for metric in self.catalog.metrics] if metrics is None else metrics
        versions = [self.catalog.metric(name).metric_version for name in names]
        columns = ["partition", "run_id", "metric_versions"]
        self.client.insert(self._name("publications"), [[day, run, versions]], column_names=columns)

    def certify(self, day: date, run: str, certified: bool = True, residual: int = 0) -> None:
        columns = ["partition", "run_id", "certified", "verdict", "residual", "causes", "evidence"]
        verdict = "speed_defect" if residual else "clean"
        row = [day, run, certified, verdict, residual, {"late": 1}, "{}"]
        self.client.insert(self._name("certificates"), [row], column_names=columns)

    def close(self, day: date, run: str) -> None:
        """Publish and certify a day."""
        self.publish(day, run)
        self.certify(day, run)

    def watermark(self, moment: datetime, topic_partition: int = 0, next_offset: int = 1) -> None:
        columns = ["topic", "topic_partition", "watermark", "next_offset"]
        row = [self.catalog.topic, topic_partition, moment, next_offset]
        self.client.insert(self._name("watermarks"), [row], column_names=columns)

    def read(self, view: str, columns: str = "*", where: str = "1") -> list[tuple[object, ...]]:
        sql = f"SELECT {columns} FROM {self._name(view)} WHERE {where} ORDER BY ALL"
        return [tuple(row) for row in self.client.query(sql).result_rows]

    def _states(self, events: Iterable[Event]) -> Iterator[tuple[Group, Metric, pl.DataFrame]]:
        frame = _frame(events)
        for group in groups(self.catalog):
            states = merge_states(group, partial_states(group, frame))
            for metric in group.metrics:
                rows = session_rows(group, metric, states) if group.session else metric_rows(group, metric, states)
                yield group, metric, _timed(rows)

    def _items(self, group: Group, metric: Metric, events: list[Event]) -> pl.DataFrame:
        """A row per distinct value and slice, or session."""
        chosen = selected(group, metric, _frame(events))
        if metric.agg.item_type == "String":
            chosen = chosen.with_columns(pl.col("argument").cast(pl.String))
        counted = chosen.group_by([*group.keys, "argument"]).agg(n=pl.len().cast(pl.UInt64))
        counted = counted.rename({"argument": "item"})
        if group.session is None:
            return _timed(counted)
        frame = _frame(events)
        states = merge_states(group, partial_states(group, frame))
        sessions = session_rows(group, metric, states)
        within = counted.join(sessions, on=group.dimensions).filter(
            pl.col("slice_start").is_between("window_start", "window_end", closed="left")
        )
        times = ["window_start", "window_end", "length_ms"]
        return _timed(within.group_by([*times, *group.dimensions, "item"]).agg(pl.col("n").sum()))

    def _name(self, table: str) -> str:
        return f"{quote(self.database)}.{quote(table)}"


def day_of(event: Event) -> date:
    return from_epoch_ms(to_epoch_ms(event.time)).date()


def _frame(events: Iterable[Event]) -> pl.DataFrame:
    rows = [
        (to_epoch_ms(e.time), e.kind, e.country, e.user, e.amount, e.page, e.took, e.counted, e.change, e.flag)
        for e in events
    ]
    frame = pl.DataFrame(rows, schema=_FRAME, orient="row")
    return frame.with_columns(topic_partition=pl.lit(0, pl.Int32), offset=pl.int_range(pl.len(), dtype=pl.Int64))


def _timed(rows: pl.DataFrame) -> pl.DataFrame:
    times = [name for name in ("slice_start", "window_start", "window_end") if name in rows.columns]
    return rows.with_columns(pl.col(times).cast(TIME))
