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

from batch_layer.exact import READINGS, column
from batch_layer.rows import dimension_column, merged_states
from infra.clickhouse import connect, insert_frame, query_frame, quote
from infra.settings import Settings
from metrics.aggregation import Sum
from metrics.catalog import Catalog, Metric
from metrics.fold import groups, metric_rows

WRITTEN = {"table": "string", "rows": "bigint"}
"""Spark types of what a writer yields: how many rows it wrote into which table."""

_ROWS_PER_INSERT = 200_000
_TIME = pl.Datetime("ms", "UTC")


class WriteError(Exception):
    """ClickHouse does not hold the rows that the run wrote, so the run is not published."""


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
    """Rows of `batch_<m>` from the windows of `exact.ExactValues`."""

    metrics: tuple[Metric, ...]

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """One frame per metric; windows of its grains in which any reading saw an event of it."""
        for number, metric in enumerate(self.metrics):
            grains = {window.size_ms: window.grain for window in metric.windows}
            kind = metric.agg.state[0].dtype if isinstance(metric.agg, Sum) else pl.UInt64()
            names = ("value" if reading == "exact" else f"value_{reading}" for reading in READINGS)
            values = {name: pl.col(column(number, r)).cast(kind) for name, r in zip(names, READINGS, strict=True)}
            yield (
                f"batch_{metric.name}",
                rows.filter(pl.col("size_ms").is_in(list(grains)) & pl.col(column(number, "seen")))
                .select(
                    partition=_day("window_start"),
                    metric_version=pl.lit(metric.metric_version),
                    grain=pl.col("size_ms").replace_strict(grains, return_dtype=pl.String),
                    window_start=pl.col("window_start").cast(_TIME),
                    window_end=(pl.col("window_start") + pl.col("size_ms")).cast(_TIME),
                    **{name: pl.col(dimension_column(name)) for name in metric.by},
                    events=pl.col(column(number, "events")).cast(pl.UInt64),
                    **values,
                )
                .sort("partition", "grain", "window_start", *metric.by),
            )


@dataclass(frozen=True)
class ExpectedFrames:
    """Rows of `expected_<m>` from the payloads of states; all payloads of a group's bucket must be in one task."""

    catalog: Catalog

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """Merges each group's states and takes them apart by metric."""
        for number, group in enumerate(groups(self.catalog)):
            payloads = rows.filter(pl.col("group") == number)["payload"].to_list()
            if not payloads:
                continue
            states = merged_states(group, payloads)
            for metric in group.metrics:
                frame = metric_rows(group, metric, states)
                yield (
                    f"expected_{metric.name}",
                    frame.with_columns(
                        partition=_day("slice_start"),
                        metric_version=pl.lit(metric.metric_version),
                        slice_start=pl.col("slice_start").cast(_TIME),
                    ),
                )


@dataclass(frozen=True)
class ExceptionFrames:
    """Rows of `batch_exceptions`: a row per record that was not counted."""

    topic: str

    def __call__(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """An event belongs to the day of its time, a dead letter to that of its record's timestamp."""
        yield (
            "batch_exceptions",
            rows.select(
                partition=_day(pl.coalesce("event_time", "record_time")),
                topic=pl.lit(self.topic),
                topic_partition="topic_partition",
                offset="offset",
                record_time=pl.col("record_time").cast(_TIME),
                event_id="event_id",
                event_time=pl.col("event_time").cast(_TIME),
                disposition="disposition",
                reason="reason",
            ).sort("partition", "topic_partition", "offset"),
        )


def check_written(client: Client, run_id: str, written: Mapping[str, int]) -> None:
    """Compares what the writers say they wrote with what the tables hold.

    Raises:
        WriteError: They differ.
    """
    for table, rows in sorted(written.items()):
        sql = f"SELECT count() AS held FROM {quote(table)} WHERE run_id = {{run_id:String}}"
        held = query_frame(client, sql, {"run_id": run_id})["held"][0]
        if held != rows:
            msg = (
                f"table `{table}` must hold the {rows} rows that run `{run_id}` wrote; it holds {held}. nothing was "
                "published; run the days again"
            )
            raise WriteError(msg)


def publish(client: Client, run_id: str, days: Sequence[date], catalog: Catalog) -> None:
    """Makes a run current for all its days, metrics and grains at once: one insert of one block."""
    versions = [metric.metric_version for metric in catalog.metrics]
    rows = [{"partition": day, "run_id": run_id, "metric_versions": versions} for day in days]
    insert_frame(client, "publications", pl.DataFrame(rows), f"{run_id}/publications")


def _day(time: str | pl.Expr) -> pl.Expr:
    column = pl.col(time) if isinstance(time, str) else time
    return column.cast(_TIME).dt.date()
