"""Fills a source's tables by hand, from a log whose every record is known: what both layers would have written."""

import json
import random
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import yaml

from infra.catalog_file import load_catalog
from infra.clickhouse import insert_frame
from metrics.disposition import PartitionReader
from metrics.fold import groups, merge_states, metric_rows, partial_states, selected, session_rows
from metrics.reference import Record
from metrics.session import assign_sessions
from metrics.window import Window, from_epoch_ms, to_epoch_ms
from serving.schema import tables

DAY = date(2026, 3, 1)
CATALOG = """
source: {source}
topic: events.{source}
format: json
event_id: id
event_time: {{field: ts, unit: ms}}
key: user_id
out_of_orderness: 10s
allowed_lateness: 1h
dedup_horizon: 1000
topic_partitions: 2
fields:
  event_type: string
  user_id: string
  country: {{type: string, default: unknown}}
  amount: {{type: decimal, scale: 2}}
metrics:
  events: {{agg: count, window: [tumbling 1m, tumbling 1d]}}
  revenue: {{agg: sum(amount), where: event_type = 'purchase', by: [country], window: [tumbling 5m, tumbling 1h]}}
  visitors: {{agg: distinct(user_id), window: [tumbling 5m, tumbling 1d]}}
"""
COMPLETE = """
source: {source}
topic: events.{source}
format: json
event_id: id
event_time: {{field: ts, unit: ms}}
key: user_id
out_of_orderness: 10s
allowed_lateness: 1h
dedup_horizon: 1000
topic_partitions: 2
fields:
  event_type: string
  user_id: string
  country: {{type: string, default: unknown}}
  amount: {{type: decimal, scale: 2}}
  weight: float
  gain: float
  page: string
  counted: int
  change: int
metrics:
  events: {{agg: count, by: [country], window: [sliding 1h every 15m, tumbling 1d, week Europe/Berlin, global]}}
  purchases: {{agg: count, where: event_type = 'purchase', window: [tumbling 1h, tumbling 1d]}}
  views: {{agg: count, where: event_type = 'view', window: [tumbling 1h, tumbling 1d]}}
  purchase_ratio: {{ratio: [purchases, views]}}
  revenue: {{agg: sum(amount), by: [country], window: [tumbling 5m, day Europe/Berlin]}}
  weights: {{agg: sum(weight), window: [tumbling 1h, global]}}
  least: {{agg: min(amount), window: [tumbling 5m]}}
  greatest: {{agg: max(weight), window: [tumbling 5m, month Europe/Berlin]}}
  average: {{agg: mean(amount), window: [tumbling 5m]}}
  balance: {{agg: sum(gain), window: [tumbling 1h]}}
  average_weight: {{agg: mean(weight), window: [tumbling 1h]}}
  spread: {{agg: stddev(weight), window: [tumbling 1h, sliding 2h every 1h]}}
  visitors: {{agg: distinct(user_id), window: [tumbling 5m, tumbling 1d, global]}}
  median: {{agg: "quantile(amount, 0.5)", window: [tumbling 1h]}}
  heaviest: {{agg: "quantile(weight, 0.9)", by: [country], window: [tumbling 3d]}}
  pages: {{agg: "top(page, 3)", window: [tumbling 1h, tumbling 1d]}}
  last_page: {{agg: last(page), window: [tumbling 5m]}}
  last_amount: {{agg: last(amount), by: [country], window: [tumbling 1h]}}
  stock: {{agg: "level(counted, change)", by: [country], window: [tumbling 1h, global]}}
  visits: {{agg: count, by: [country], window: session 30m max 3h}}
  visit_pages: {{agg: "top(page, 2)", window: session 30m}}
  visit_amount: {{agg: mean(amount), window: session 30m}}
  visit_spread: {{agg: "quantile(weight, 0.5)", window: session 1h}}
"""
"""Every aggregation and every window."""
MINUTE = 60_000


def body(number, moment, **changes):
    """An event as JSON; everything follows from its number."""
    shown = {
        "id": f"e{number}",
        "ts": moment,
        "event_type": "purchase" if number % 3 == 0 else "view",
        "user_id": f"u{number * 7919 % 997}",
        "country": ("DE", "FR", "PT")[number % 3 if number % 9 else number % 2],
        "amount": f"{number % 90 + 1}.{number % 100:02d}",
        "weight": number % 77 / 7,
        "gain": (number % 7 - 3) / 7,
        "page": f"/p{number * number % 13}",
        "counted": 500 if number % 50 == 0 else None,
        "change": number % 7 - 3,
    }
    return json.dumps(shown | changes).encode()


def make_log(seed=1, events=500, day=DAY, late=5, duplicates=4, conflicts=2, dead=3, users=997):
    """Records of one day in two topic partitions, with known numbers of each disposition."""
    rng = random.Random(seed)
    start = to_epoch_ms(Window.of_day(day).start)
    offsets = [0, 0]
    records = []

    def write(topic_partition, record_time, value):
        records.append(Record(topic_partition, offsets[topic_partition], record_time, value))
        offsets[topic_partition] += 1

    weights = [(1 + 3 * abs((hour + 4) % 24 - 12) / 12) for hour in range(24)]
    hours = rng.choices(range(24), weights, k=events)
    moments = sorted(start + hour * 60 * MINUTE + rng.randrange(60 * MINUTE) for hour in hours)
    special = rng.sample(range(events // 4, events), late + duplicates + conflicts + dead)
    kinds = dict(zip(special, ["late"] * late + ["dup"] * duplicates + ["conflict"] * conflicts + ["dead"] * dead,
                     strict=True))  # fmt: skip
    for number, moment in enumerate(moments):
        where = number % 2
        user = {"user_id": f"u{number * 7919 % users}"}
        write(where, moment, body(number, moment, **user))
        match kinds.get(number):
            case "late":
                write(where, moment, body(number + 1_000_000, moment - 120 * MINUTE, **user))
            case "dup":
                write(where, moment, body(number, moment))
            case "conflict":
                write(where, moment, body(number, moment - 1000))
            case "dead":
                write(where, moment, b"{not json" if number % 2 else b'{"id": 7}')
    return records


class Seed:
    """One source whose tables hold what a log gives; each part is written by its own call."""

    def __init__(self, client, settings, source, folder: Path, catalog_text=CATALOG):
        text = catalog_text.format(source=source)
        path = folder / f"{source}.yaml"
        path.write_text(text)
        self.tree = yaml.safe_load(text)
        self.catalog = load_catalog(path)
        self.client = client
        self.database = settings.database(source)
        client.command(f"CREATE DATABASE IF NOT EXISTS {self.database}")
        for table in tables(self.catalog):
            client.command(table.create(self.database))

    def read(self, records):
        """Chunks of all topic partitions, and the ranges that a run over the whole log records."""
        chunks, ranges = [], []
        for number in range(self.catalog.topic_partitions):
            own = [record for record in records if record.topic_partition == number]
            reader = PartitionReader(self.catalog)
            chunk = reader.read(
                number,
                [record.offset for record in own],
                [record.record_time for record in own],
                [record.value for record in own],
            )
            chunks.append(chunk)
            ranges.append(
                {"topic_partition": number, "start": 0, "end": len(own), "log_begin": 0, "log_end": len(own)}
                | {"records": len(own)}
                | {name: chunk.ledger[name].sum() for name in _DISPOSITIONS}
            )
        return chunks, ranges

    def speed(self, records, upto=None, change=None):
        """What the speed layer publishes after reading each topic partition up to an offset (default: all)."""
        seen = [record for record in records if upto is None or record.offset < upto]
        chunks, ranges = self.read(seen)
        for metric, rows in self._states([chunk.counted for chunk in chunks]):
            changed = change(metric.name, rows) if change else rows
            self._insert(
                f"speed_{metric.name}",
                _with_time(changed).with_columns(metric_version=pl.lit(metric.metric_version), pane=pl.lit("early")),
            )
        topic = pl.lit(self.catalog.topic)
        for chunk, read in zip(chunks, ranges, strict=True):
            self._insert("ledger", chunk.ledger.with_columns(topic=topic))
            self._insert("exceptions", _exceptions(chunk.exceptions).with_columns(topic=topic))
            times = [record.record_time for record in seen] or [0]
            self._insert(
                "watermarks",
                pl.DataFrame(
                    {
                        "topic": [self.catalog.topic],
                        "topic_partition": [read["topic_partition"]],
                        "watermark": [from_epoch_ms(max(times)) - self.catalog.out_of_orderness],
                        "next_offset": [read["end"]],
                    },
                    schema_overrides={"topic_partition": pl.Int32, "watermark": pl.Datetime("ms", "UTC")},
                ),
            )

    def batch(self, records, run_id="run-1", day=DAY, publish=True, **manifest):
        """What a batch run of one day writes; `manifest` overrides what it records of itself."""
        chunks, ranges = self.read(records)
        start = to_epoch_ms(Window.of_day(day).start)
        end = to_epoch_ms(Window.of_day(day).end)
        run = {"run_id": pl.lit(run_id), "partition": pl.lit(day)}
        for metric, rows in self._states([chunk.counted for chunk in chunks]):
            version = pl.lit(metric.metric_version)
            self._insert(
                f"expected_{metric.name}", _of_day(rows, start, end).with_columns(**run, metric_version=version)
            )
        readings = _readings(pl.concat([chunk.events for chunk in chunks]))
        for reading, events in readings.items():
            for metric, rows in self._exact(events):
                named = {"metric_version": pl.lit(metric.metric_version), "reading": pl.lit(reading)}
                self._insert(f"batch_{metric.name}", _of_day(rows, start, end).with_columns(**run, **named))
        exceptions = pl.concat([chunk.exceptions for chunk in chunks])
        of_day = pl.coalesce("event_time", "record_time").is_between(start, end, closed="left")
        self._insert(
            "batch_exceptions",
            _exceptions(exceptions.filter(of_day)).with_columns(topic=pl.lit(self.catalog.topic), **run),
        )
        own_events = pl.concat([chunk.events for chunk in chunks]).filter(
            pl.col("event_time").is_between(start, end, closed="left")
        )
        dead = pl.concat([chunk.dead_letters for chunk in chunks])
        dispositions = {name: own_events.filter(pl.col("disposition") == name).height for name in _DISPOSITIONS}
        dispositions["dead_letter"] = dead.filter(pl.col("record_time").is_between(start, end, closed="left")).height
        events = readings["exact"].filter(pl.col("event_time").is_between(start, end, closed="left")).height
        told = {
            "run_id": run_id,
            "source": self.catalog.source,
            "topic": self.catalog.topic,
            "partition": day.isoformat(),
            "catalog_version": self.catalog.version,
            "ranges": ranges,
            "dispositions": dispositions,
            "events": events,
            "indexed": {
                "events": sum(n for name, n in dispositions.items() if name != "dead_letter"),
                "dead_letters": dispositions["dead_letter"],
            },
            "outside": 0,
            "wall_seconds": 1.5,
            "code_version": "0.1.0",
        } | manifest
        versions = [metric.metric_version for metric in self.catalog.metrics]
        self._insert(
            "batch_runs",
            pl.DataFrame(
                {
                    "run_id": [run_id],
                    "partition": [day],
                    "catalog_version": [self.catalog.version],
                    "metric_versions": [versions],
                    "manifest": [json.dumps(told)],
                    "status": ["complete"],
                    "events": [events],
                },
                schema_overrides={"events": pl.UInt64},
            ),
        )
        if publish:
            self.publish(run_id, day)
        return told

    def publish(self, run_id, day=DAY, versions=None, alerts=None):
        self._insert(
            "publications",
            pl.DataFrame(
                {
                    "partition": [day],
                    "run_id": [run_id],
                    "metric_versions": [versions or [metric.metric_version for metric in self.catalog.metrics]],
                    "alert_versions": [
                        [alert.alert_version for alert in self.catalog.alerts] if alerts is None else alerts
                    ],
                    "published_at": [datetime.now(UTC)],
                },
                schema_overrides={"alert_versions": pl.List(pl.String), "published_at": pl.Datetime("us", "UTC")},
            ),
        )

    def certificates(self):
        return self.client.query(f"SELECT count() FROM {self.database}.certificates").result_rows[0][0]

    def _states(self, frames):
        for group in groups(self.catalog):
            merged = merge_states(group, pl.concat([partial_states(group, events) for events in frames]))
            for metric in group.metrics:
                yield (
                    metric,
                    session_rows(group, metric, merged) if group.session else metric_rows(group, metric, merged),
                )

    def _exact(self, events):
        """The exact rows of each metric: states, or each distinct value with its count."""
        for metric, rows in self._states([events]):
            if not metric.agg.by_value:
                yield metric, rows.drop("chain_events", strict=False)
                continue
            group = next(group for group in groups(self.catalog) if metric in group.metrics)
            item = pl.col("argument")
            values = selected(group, metric, events).with_columns(
                item=item.cast(pl.String) if metric.agg.item_type == "String" else item
            )
            counted = values.group_by([*group.keys, "item"]).agg(n=pl.len().cast(pl.UInt64))
            if group.session:
                at = counted.rename({"slice_start": "event_time", "n": "events"})
                keys = ["window_start", "window_end", "length_ms", *group.dimensions, "item"]
                assigned = assign_sessions(at, group.dimensions, group.session)
                counted = assigned.group_by(keys).agg(n=pl.col("events").sum())
            yield metric, counted

    def _insert(self, table, frame):
        insert_frame(self.client, f"{self.database}.{table}", frame)


_DISPOSITIONS = ("counted", "late", "duplicate", "id_conflict", "dead_letter")


def _readings(events):
    """Which events each exact reading holds: once each, whatever the partition."""
    disposition = pl.col("disposition")
    kept = {
        "counted": disposition == "counted",
        "with_late": disposition.is_in(["counted", "late"]),
        "exact": disposition != "id_conflict",
    }
    return {
        name: events.filter(condition).unique(["event_id", "event_time"], keep="first", maintain_order=True)
        for name, condition in kept.items()
    }


def _of_day(rows, start, end):
    """The slices that start in a day, the sessions whose last instant lies in it."""
    if "slice_start" in rows.columns:
        return _with_time(rows.filter(pl.col("slice_start").is_between(start, end, closed="left")))
    own = rows.filter((pl.col("window_end") > start) & (pl.col("window_end") <= end))
    return _with_time(own.drop("chain_events", strict=False))


def _with_time(rows):
    names = [name for name in ("slice_start", "window_start", "window_end") if name in rows.columns]
    return rows.with_columns(
        pl.from_epoch(name, time_unit="ms").dt.cast_time_unit("ms").dt.replace_time_zone("UTC").alias(name)
        for name in names
    )


def _exceptions(frame):
    return frame.with_columns(
        pl.from_epoch(name, time_unit="ms").dt.cast_time_unit("ms").dt.replace_time_zone("UTC").alias(name)
        for name in ("record_time", "event_time")
    )
