"""What every system of `bench batch` must find alike: events by type, and turnover, in every minute of the day."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from infra.clickhouse import connect, query_frame
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import COUNTED, LATE
from serving.readings import is_of
from speed_layer.bench.backlog import Backlog

MINUTE_MS = 60_000
BY_TYPE, TURNOVER = "events_by_type", "turnover"
"""Metrics of the shop, each with a window of a minute."""

Row = tuple[int, str, int]
"""Where a minute begins in ms, an event type or `TURNOVER`, and the number of events or of hundredths."""


def expected(backlog: Backlog, span: tuple[int, int]) -> list[Row]:
    """What is to be found of a backlog in a stretch of time ``[start, end)`` in ms, late events included."""
    found: Counter[tuple[int, str]] = Counter()
    for (at, kind), total in backlog.expected(COUNTED, LATE).items():
        if span[0] <= at < span[1]:
            minute = at // MINUTE_MS * MINUTE_MS
            found[minute, kind] += total.events
            if kind == "purchase":
                found[minute, TURNOVER] += total.cents
    return [(minute, name, number) for (minute, name), number in found.items()]


def of_batch(settings: Settings, catalog: Catalog, run_id: str) -> list[Row]:
    """What a run of the batch layer has written of its day, in the exact reading."""
    sql = (
        f"SELECT toUnixTimestamp64Milli(slice_start) AS at, event_type AS name, toInt64(events) AS number "
        f"FROM batch_{BY_TYPE} WHERE {is_of('exact', 'reading')} AND run_id = {{run:String}} UNION ALL "
        f"SELECT toUnixTimestamp64Milli(slice_start), '{TURNOVER}', toInt64(total * 100) "
        f"FROM batch_{TURNOVER} WHERE {is_of('exact', 'reading')} AND run_id = {{run:String}}"
    )
    client = connect(settings, settings.database(catalog.source))
    return query_frame(client, sql, {"run": run_id}).rows()


def of_files(results: Path, span: tuple[int, int]) -> list[Row]:
    """What a rival has written of a stretch of time (ms), with columns as Spark or as polars names them."""
    counts = _table(results, BY_TYPE).select("at", pl.col("f_event_type"), pl.col("value").cast(pl.Int64))
    hundredths = (pl.col("value") * 100).cast(pl.Int64)
    turnover = _table(results, TURNOVER).select("at", pl.lit(TURNOVER).alias("f_event_type"), hundredths)
    return pl.concat([counts, turnover]).filter(pl.col("at").is_between(*span, closed="left")).rows()


def summary(rows: Iterable[Row]) -> str:
    """The number of events, and a digest of all rows whatever their order."""
    ordered = sorted(rows)
    events = sum(number for _, name, number in ordered if name != TURNOVER)
    return f"{events:,} events, {hashlib.sha256(repr(ordered).encode()).hexdigest()[:16]}"


def _table(results: Path, metric: str) -> pl.DataFrame:
    path = results / f"{metric}_1m.parquet"
    found = pl.read_parquet(path / "*.parquet" if path.is_dir() else path)
    start = pl.col("window").struct.field("start") if "window" in found.columns else pl.col("event_time")
    return found.with_columns(start.dt.epoch("ms").alias("at"))
