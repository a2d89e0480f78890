"""Immutable rows of a run, written from where they were computed, and the one insert that makes them visible.

Everything a run writes carries its `run_id`, which no view shows before `publications` names it. So a run that fails or
is killed, at whatever moment, changes nothing that a reader sees.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol

import polars as pl
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from pyspark import TaskContext

from batch_layer.exact import ITEM, SESSION_TIMES, Readings, of_days
from batch_layer.rows import in_spans, merged_states
from infra.clickhouse import connect, insert_frame, query_frame, quote
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import DEAD_LETTER
from metrics.fold import Group, groups, metric_rows, session_rows

WRITTEN = {"table": "string", "rows": "bigint"}
"""Spark types of what a writer yields: how many rows it wrote into which table."""

_ROWS_PER_INSERT = 200_000
_TIME = pl.Datetime("ms", "UTC")


class WriteError(Exception):
    """ClickHouse does not hold the rows that the run wrote, so the run is not published."""


class PublishedMeanwhileError(WriteError):
    """Another run published a day that this one computed, so this one is not shown."""


@dataclass(frozen=True)
class Target:
    """Where a run's rows go."""

    settings: Settings
    database: str
    run_id: str

    def connect(self) -> Client:
        """A client of the source's database. One insert may hold rows of many days, each a partition of its own."""
        return connect(self.settings, self.database, options={"max_partitions_per_insert_block": 0})


class Frames(Protocol):
    """Turns what a Spark task computed into frames by table name, each sorted."""

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """The frames of all rows of the task."""


@dataclass(frozen=True)
class Writer:
    """Writes what a Spark task computed; for `mapInArrow`, yields `WRITTEN`.

    A task that Spark repeats sends the same blocks under the same tokens, so ClickHouse keeps one of each.
    """

    target: Target
    frames: Frames
    name: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Writes all rows of one Spark partition."""
        held = [batch for batch in batches if batch.num_rows]
        if not held:
            return
        rows = pl.from_arrow(pa.Table.from_batches(held))
        client = self.target.connect()
        task = TaskContext.get()
        part = task.partitionId() if task else 0
        for table, frame in self.frames(rows):
            stamped = frame.with_columns(run_id=pl.lit(self.target.run_id))
            for number, block in enumerate(stamped.iter_slices(_ROWS_PER_INSERT)):
                token = f"{self.target.run_id}/{self.name}/{table}/{part}/{number}"
                insert_frame(client, quote(table), block, token)
            yield pa.record_batch({"table": [table], "rows": pa.array([frame.height], pa.int64())})


@dataclass(frozen=True)
class ExactFrames:
    """Rows of `batch_<m>` from payloads of `exact.Fold`; all payloads of a group's bucket must be in one task.

    Attributes:
        catalog: Of the metrics.
        spans: Milliseconds ``[start, end)`` of the days asked for.
    """

    catalog: Catalog
    spans: tuple[tuple[int, int], ...]

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """One frame per metric, sorted by the keys of its table."""
        of = {metric.name: (group, metric) for group in groups(self.catalog) for metric in group.metrics}
        for name, frame in Readings(self.catalog, self.spans)(rows):
            group, metric = of[name]
            times = list(time_columns(group))
            keys = ["partition", "reading", *times, *group.dimensions, *([ITEM] if metric.agg.by_value else [])]
            ordered = frame.with_columns(_partition(group)).sort(keys)
            yield (
                f"batch_{name}",
                ordered.with_columns(*_times(group), metric_version=pl.lit(metric.metric_version)),
            )


def time_columns(group: Group) -> tuple[str, ...]:
    """The columns that say when, of a slice or a session."""
    return SESSION_TIMES if group.session else ("slice_start",)


@dataclass(frozen=True)
class ExpectedFrames:
    """Rows of `expected_<m>` from the payloads of states; all payloads of a group's bucket must be in one task.

    Attributes:
        catalog: Of the metrics.
        spans: Milliseconds ``[start, end)`` of the days asked for.
    """

    catalog: Catalog
    spans: tuple[tuple[int, int], ...]

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """Merges each group's states and takes them apart by metric."""
        for number, group in enumerate(groups(self.catalog)):
            payloads = rows.filter(pl.col("group") == number).sort("topic_partition", "bucket")["payload"].to_list()
            if not payloads:
                continue
            states = merged_states(group, payloads)
            for metric in group.metrics:
                if group.session:
                    sessions = session_rows(group, metric, states).drop("chain_events")
                    frame = sessions.filter(of_days(self.spans))
                else:
                    frame = metric_rows(group, metric, states).filter(in_spans("slice_start", self.spans))
                version = pl.lit(metric.metric_version).alias("metric_version")
                yield f"expected_{metric.name}", frame.with_columns(_partition(group), version, *_times(group))


@dataclass(frozen=True)
class ExceptionFrames:
    """Rows of `batch_exceptions`: a row per record that was not counted.

    Attributes:
        topic: Of the records.
        repairs: `batch_layer.rows.REPAIRED` of the whole range.
    """

    topic: str
    repairs: pl.DataFrame

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """An event belongs to the day of its time, a dead letter to that of its record's timestamp."""
        yield (
            "batch_exceptions",
            rows.join(self.repairs, on=["topic_partition", "offset"], how="left")
            .select(
                partition=_day(pl.coalesce("event_time", "record_time")),
                topic=pl.lit(self.topic),
                topic_partition="topic_partition",
                offset="offset",
                record_time=pl.col("record_time").cast(_TIME),
                event_id="event_id",
                event_time=pl.col("event_time").cast(_TIME),
                disposition="disposition",
                reason="reason",
                # a record that can be read by now needs no repair
                repaired_offset=pl.when(pl.col("disposition") == DEAD_LETTER).then("repaired_offset"),
            )
            .sort("partition", "topic_partition", "offset"),
        )


def check_written(client: Client, run_id: str, days: Sequence[date], written: Mapping[str, int]) -> None:
    """Compares what the writers say they wrote with what the tables hold.

    Raises:
        WriteError: They differ.
    """
    for table, rows in sorted(written.items()):
        of_run = "run_id = {run_id:String} AND has({days:Array(Date)}, partition)"
        sql = f"SELECT count() AS held FROM {quote(table)} WHERE {of_run}"
        held = query_frame(client, sql, {"run_id": run_id, "days": [*days]})["held"][0]
        if held != rows:
            msg = (
                f"table `{table}` must hold the {rows} rows that run `{run_id}` wrote; it holds {held}. nothing was "
                "published; run the days again"
            )
            raise WriteError(msg)


def published(client: Client, days: Sequence[date]) -> dict[date, int]:
    """How often each of the days was published so far."""
    sql = (
        "SELECT partition, count() AS times FROM publications WHERE has({days:Array(Date)}, partition) "
        "GROUP BY partition"
    )
    found = query_frame(client, sql, {"days": [*days]})
    return dict.fromkeys(days, 0) | dict(found.select("partition", "times").rows())


def publish(client: Client, run_id: str, times: Mapping[date, int], catalog: Catalog) -> None:
    """Makes a run current for some days, one after the other; of each, all metrics and grains at once.

    Of two runs that compute a day at once, one publishes it: both insert under the same token, of which ClickHouse
    takes the first.

    Args:
        client: Of the source's database.
        run_id: The run.
        times: By day, how often it was published when the run began.
        catalog: Of the source.

    Raises:
        PublishedMeanwhileError: Another run published a day since; the days before it in `times` are this run's.
    """
    versions = {
        "metric_versions": [metric.metric_version for metric in catalog.metrics],
        "alert_versions": [alert.alert_version for alert in catalog.alerts],
    }
    for day, before in times.items():
        row = {"partition": day, "run_id": run_id, **versions}
        rows = pl.DataFrame([row], schema_overrides=dict.fromkeys(versions, pl.List(pl.String)))
        if published(client, [day])[day] == before:
            insert_frame(client, "publications", rows, f"{day}/{before}")
        sql = "SELECT run_id FROM publications WHERE partition = {day:Date} ORDER BY published_at"
        runs = query_frame(client, sql, {"day": day})["run_id"].to_list()
        if run_id not in runs:
            msg = (
                f"{day} was published by run `{runs[-1]}` while run `{run_id}` computed it. nothing of the latter is "
                "shown of that day; run it again if it is to replace the other"
            )
            raise PublishedMeanwhileError(msg)


def _partition(group: Group) -> pl.Expr:
    """The day that a slice or a session belongs to."""
    last = pl.col("window_end") - 1 if group.session else pl.col("slice_start")
    return _day(last).alias("partition")


def _times(group: Group) -> list[pl.Expr]:
    """The group's times as its tables hold them: instants, and a session's length in ms."""
    kinds = {"length_ms": pl.UInt64()}
    return [pl.col(name).cast(kinds.get(name, _TIME)) for name in time_columns(group)]


def _day(time: str | pl.Expr) -> pl.Expr:
    column = pl.col(time) if isinstance(time, str) else time
    return column.cast(_TIME).dt.date()
