"""Alerts in the batch layer: what should have been raised, from every well-formed event once, late ones included.

An alert's events are brought together by its key, without one by time, and judged by the function that the speed layer
runs as well. What lies before the days of the run is among the events, as far as an alert's time reaches. A level
reaches back for ever: what it was at the beginning comes from the exact states that earlier days have published, so a
level that was last set on a day that is not published is unknown and counts from 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import polars as pl
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from batch_layer.copies import with_exact
from batch_layer.rows import (
    HOUR_MS,
    arrow_schema,
    day_spans,
    ddl,
    from_bytes,
    in_spans,
    neighbourhood,
    to_batches,
    used_fields,
)
from infra.clickhouse import query_frame, quote
from metrics.aggregation import spark_type
from metrics.alert import Alert
from metrics.breach import FOLDED, alert_rows, breaches, key_columns, row_schema, table_rows, watched_condition
from metrics.catalog import Catalog, Metric
from metrics.event import FIELD_PREFIX
from metrics.expression import FieldType
from metrics.window import milliseconds
from serving.alert_tables import BATCH_ALERTS
from serving.days import Days, table
from serving.readings import is_of

PART = "part"
"""Where a stretch of time begins (ms) that is judged by itself, of an alert without a key."""


@dataclass(frozen=True)
class AlertFrames:
    """Rows of `batch_alerts` from what `together` brings into one task.

    Attributes:
        catalog: Of the alert.
        alert: Which.
        days: Those of the run: a breach belongs to the day in which it begins.
        opening: Of a level, what earlier days say of it, as rows of the alert.
    """

    catalog: Catalog
    alert: Alert
    days: tuple[date, ...]
    opening: pl.DataFrame | None = None

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """Judges all instants of the task."""
        parts = rows.partition_by(PART, as_dict=True, include_key=False) if PART in rows.columns else {(None,): rows}
        found = pl.concat([self._breaches(part, start) for (start,), part in parts.items()])
        if found.is_empty():
            return
        made = table_rows(self.alert, found)
        day = pl.col("breached_at").dt.date().alias("partition")
        yield BATCH_ALERTS, made.with_columns(day).sort("partition", "alert", "breached_at", "alert_id")

    def _breaches(self, rows: pl.DataFrame, start: int | None) -> pl.DataFrame:
        watched = alert_rows(self.alert, self.catalog, rows.with_columns(record_time=pl.lit(0, pl.Int64)))
        keys = key_columns(self.alert)
        if self.opening is not None and not watched.is_empty():
            mine = self.opening.join(watched.select(keys).unique(), on=keys, how="semi") if keys else self.opening
            watched = pl.concat([mine.select(watched.columns).cast(dict(watched.schema)), watched])  # type: ignore[arg-type]
        found = breaches(self.alert, watched).filter(_inside(day_spans(self.days)))
        return found if start is None else found.filter(_inside([(start, start + _width(self.alert))]))


@dataclass(frozen=True)
class Watched:
    """The exact events that any alert watches, from payloads of events; for `mapInArrow`.

    Attributes:
        catalog: Of the alerts.
        spans: Milliseconds ``[start, end)`` of the days.
        copies: See `copies.find_copies`.
    """

    catalog: Catalog
    spans: tuple[tuple[int, int], ...]
    copies: pl.Series

    @property
    def schema(self) -> dict[str, str]:
        """Names and Spark types of the columns: the event's, and `inside`, whether it is of the days."""
        needed = {name for alert in self.catalog.alerts for name in _fields(alert, self.catalog)}
        fields = (field for field in used_fields(self.catalog) if FIELD_PREFIX + field.name in needed)
        own = {"event_time": "bigint", "place": "bigint", "event_id": "string", "inside": "boolean"}
        return own | {FIELD_PREFIX + f.name: spark_type(FieldType(f.type, f.scale)) for f in fields}

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yields `schema`."""
        schema = arrow_schema(self.schema)
        conditions = [watched_condition(alert, self.catalog) for alert in self.catalog.alerts]
        near = in_spans("event_time", neighbourhood(self.catalog, self.spans))
        any_of = pl.any_horizontal([pl.lit(value=True) if each is None else each.holds for each in conditions])
        for batch in batches:
            for payload in batch["payload"]:
                events = with_exact(from_bytes(payload.as_py()), self.copies).filter(near & pl.col("exact") & any_of)
                marked = events.with_columns(inside=in_spans("event_time", self.spans))
                yield from to_batches(marked.select(schema.names), schema)


def watched_events(
    catalog: Catalog, events: DataFrame, spans: tuple[tuple[int, int], ...], copies: pl.Series
) -> DataFrame:
    """The exact events that any alert watches: rows of `Watched.schema`.

    Args:
        catalog: Of the alerts.
        events: Payloads of events, with what lies before the days.
        spans: Milliseconds ``[start, end)`` of the days.
        copies: See `copies.find_copies`.
    """
    watched = Watched(catalog, spans, copies)
    return events.select("payload").mapInArrow(watched, ddl(watched.schema))


def alert_writes(
    catalog: Catalog, events: DataFrame, days: Sequence[date], client: Client, database: str
) -> list[tuple[str, DataFrame, AlertFrames]]:
    """For each alert a name, the events that it watches, as `together` has them, and what makes rows of them.

    Args:
        catalog: Of the alerts.
        events: From `watched_events`.
        days: Of the run.
        client: Reads what earlier days have published.
        database: Of the source.
    """
    writes = []
    for alert in catalog.alerts:
        condition = watched_condition(alert, catalog)
        # What a level was before the days comes from published states alone, lest a change count twice.
        chosen = events.filter("inside") if alert.kind == "level" else events
        if condition is not None:
            chosen = chosen.filter(condition.spark_holds)
        needed = chosen.select("event_time", "place", "event_id", *_fields(alert, catalog))
        opening = opening_level(client, database, catalog, alert, days) if alert.kind == "level" else None
        frames = AlertFrames(catalog, alert, tuple(days), opening)
        writes.append((f"alert_{alert.name}", together(needed, alert), frames))
    return writes


def together(events: DataFrame, alert: Alert) -> DataFrame:
    """Events of an alert, those in one task that are judged together.

    These are all of a key; without one, all of a stretch of time, its `PART`, with those before it that its first
    instants look back to. A level without a key is judged in one task: it depends on all that came before.
    """
    if alert.by:
        return events.repartition(*(F.expr(text_sql(name)) for name in key_columns(alert)))
    if alert.within is None:
        return events.repartition(1)
    width, last = _width(alert), milliseconds(alert.within) - 1
    parts = f"sequence(event_time - pmod(event_time, {width}L), event_time + {last}L, {width}L)"
    return events.withColumn(PART, F.explode(F.expr(parts))).repartition(PART)


def text_sql(name: str) -> str:
    """A column as a dimension, as `metrics.fold.dimension` has it: its text, the empty text for NULL."""
    quoted = name.replace("`", "``")
    return f"coalesce(CAST(`{quoted}` AS string), '')"


def _width(alert: Alert) -> int:
    """How long a `PART` is (ms): no shorter than what it looks back to, so no event is in more than two."""
    assert alert.within is not None
    return max(HOUR_MS, milliseconds(alert.within))


def opening_level(client: Client, database: str, catalog: Catalog, alert: Alert, days: Sequence[date]) -> pl.DataFrame:
    """What the published days before the run's last, but for its own, say of a level.

    A day that a run of another version of the level has published since says what this version's run did.

    Returns:
        Rows of the alert, two per key and day at most: the last setting, and the sum of the changes after it.
    """
    metric = catalog.metric(alert.metric or "")
    assert isinstance(metric, Metric)
    merged = ", ".join(f"{column.merge_sql} AS {quote(column.name)}" for column in metric.agg.state)
    dims = [quote(name) for name in metric.by]
    texts = "".join(f"{name} AS {quote(key)}, " for name, key in zip(dims, key_columns(alert), strict=True))
    kind = metric.value_type
    sql = (
        f"SELECT {texts}if(empty(mapKeys(levels)), -1, arrayMax(mapKeys(levels))) AS set_at, "
        f"CAST(levels[set_at] AS {kind}) AS set_to, "
        "arrayFilter(at -> at > set_at, mapKeys(changes)) AS times, "
        "if(empty(times), -1, arrayMax(times)) AS changed_at, "
        f"CAST(arraySum(at -> changes[at], times) AS {kind}) AS change\n"
        f"FROM (SELECT {''.join(f's.{name} AS {name}, ' for name in dims)}s.partition AS day, {merged} "
        f"FROM {table(database, f'batch_{metric.name}')} AS s WHERE {is_of('exact', 's.reading')} "
        "AND s.metric_version = {version:String} AND (s.partition, s.run_id) IN ("
        f"SELECT partition, run_id FROM ({Days(database, metric.versions).published}) "
        "WHERE partition < {last:Date} AND NOT has({days:Array(Date)}, partition)) "
        f"GROUP BY {''.join(f's.{name}, ' for name in dims)}s.partition)"
    )
    found = query_frame(client, sql, {"version": metric.metric_version, "last": max(days), "days": sorted(days)})
    schema = row_schema(alert, catalog)
    parts = [
        found.filter(pl.col(at) >= 0).select(
            *key_columns(alert),
            pl.col(at).alias("event_time"),
            pl.lit(0).alias("record_time"),
            pl.lit(FOLDED).alias("place"),
            pl.lit("").alias("event_id"),
            pl.col(value).alias(name),
            pl.lit(None).alias(other),
        )
        for at, value, name, other in (
            ("set_at", "set_to", "argument", "argument2"),
            ("changed_at", "change", "argument2", "argument"),
        )
    ]
    return pl.concat([part.select(pl.col(name).cast(dtype) for name, dtype in schema.items()) for part in parts])


def _inside(spans: Sequence[tuple[int, int]]) -> pl.Expr:
    """Whether a breach begins in one of these spans of milliseconds ``[start, end)``."""
    return pl.any_horizontal([pl.col("breached_at").is_between(*span, closed="left") for span in spans])


def _fields(alert: Alert, catalog: Catalog) -> list[str]:
    """The columns of events that an alert needs."""
    names = set(alert.by)
    for expression in (watched_condition(alert, catalog), alert.argument):
        names |= expression.fields if expression else set()
    if alert.kind == "level":
        metric = catalog.metric(alert.metric or "")
        assert isinstance(metric, Metric)
        names = names.union(*(argument.fields for argument in metric.agg.arguments))
    return [FIELD_PREFIX + name for name in sorted(names)]
