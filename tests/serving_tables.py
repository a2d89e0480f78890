"""Fills the tables of a source as both layers would, for tests of what is served."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
from clickhouse_connect.driver.client import Client

from infra.catalog_file import load_catalog
from infra.clickhouse import connect, insert_frame, quote
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.fold import groups, merge_states, metric_rows, partial_states
from metrics.window import to_epoch_ms
from serving import schema
from serving.source import Source

CATALOG = """
source: {source}
topic: events.{source}
event_id: id
event_time: {{field: ts, unit: ms}}
allowed_lateness: 1h
fields:
  kind: string
  country: string
  user: string
  amount: {{type: decimal, scale: 2}}
metrics:
  events:   {{agg: count, window: [tumbling 1m, tumbling 1d]}}
  revenue:  {{agg: sum(amount), where: kind = 'buy', by: [country], window: [tumbling 1h, tumbling 1d]}}
  visitors: {{agg: distinct(user), window: [tumbling 5m, tumbling 1d]}}
"""

TIME = pl.Datetime("ms", "UTC")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Event:
    time: datetime
    kind: str = "view"
    country: str = "DE"
    user: str = "u1"
    amount: Decimal = field(default=Decimal(0))


@dataclass(frozen=True)
class Tables:
    """One source's tables: `speed` folds events as the speed layer does, `batch` states exact values."""

    client: Client
    catalog: Catalog
    source: Source
    database: str

    @classmethod
    def create(cls, settings: Settings, name: str, directory: Path) -> "Tables":
        path = directory / f"{name}.yaml"
        path.write_text(CATALOG.format(source=name), encoding="utf-8")
        catalog = load_catalog(path)
        database = settings.database(catalog.source)
        client = connect(settings)
        schema.apply(client, catalog, database)
        return cls(client, catalog, Source(settings, catalog), database)

    def speed(self, events: Iterable[Event], pane: str = "on_time", version: str | None = None) -> None:
        frame = pl.DataFrame(
            [(to_epoch_ms(e.time), e.kind, e.country, e.user, e.amount) for e in events],
            schema={
                "event_time": pl.Int64,
                "f_kind": pl.String,
                "f_country": pl.String,
                "f_user": pl.String,
                "f_amount": pl.Decimal(38, 2),
            },
            orient="row",
        )
        for group in groups(self.catalog):
            states = merge_states(group, partial_states(group, frame))
            for metric in group.metrics:
                rows = metric_rows(group, metric, states).with_columns(
                    pl.col("slice_start").cast(TIME),
                    pl.lit(version or metric.metric_version).alias("metric_version"),
                    pl.lit(pane).alias("pane"),
                )
                insert_frame(self.client, self._name(f"speed_{metric.name}"), rows)

    def batch(self, name: str, grain: str, run: str, rows: dict[tuple[datetime, str | None], object]) -> None:
        """Exact values of a run by window start and, for a metric by country, the country."""
        metric = self.catalog.metric(name)
        window = metric.window(grain)
        columns = ["run_id", "partition", "metric_version", "grain", "window_start", "window_end", *metric.by]
        columns += ["events", "value", "value_with_late", "value_counted"]
        data = []
        for (start, country), value in rows.items():
            dimensions = [country] if metric.by else []
            key = [run, start.date(), metric.metric_version, grain, start, start + window.size, *dimensions]
            data.append([*key, 1, value, value, value])
        self.client.insert(self._name(f"batch_{name}"), data, column_names=columns)

    def publish(self, day: date, run: str, metrics: Iterable[str] = ("events", "revenue", "visitors")) -> None:
        versions = [self.catalog.metric(name).metric_version for name in metrics]
        columns = ["partition", "run_id", "metric_versions"]
        self.client.insert(self._name("publications"), [[day, run, versions]], column_names=columns)

    def certify(self, day: date, run: str, certified: bool = True, residual: int = 0) -> None:
        columns = ["partition", "run_id", "certified", "verdict", "residual", "causes", "evidence"]
        verdict = "speed_defect" if residual else "clean"
        row = [day, run, certified, verdict, residual, {"late": 1}, "{}"]
        self.client.insert(self._name("certificates"), [row], column_names=columns)

    def watermark(self, moment: datetime, topic_partition: int = 0, next_offset: int = 1) -> None:
        columns = ["topic", "topic_partition", "watermark", "next_offset"]
        row = [self.catalog.topic, topic_partition, moment, next_offset]
        self.client.insert(self._name("watermarks"), [row], column_names=columns)

    def read(self, view: str, columns: str = "*", where: str = "1") -> list[tuple[object, ...]]:
        sql = f"SELECT {columns} FROM {self._name(view)} WHERE {where} ORDER BY ALL"
        return [tuple(row) for row in self.client.query(sql).result_rows]

    def _name(self, table: str) -> str:
        return f"{quote(self.database)}.{quote(table)}"
