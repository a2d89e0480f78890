"""From records to rows: what one pass over a topic partition hands to Spark.

A pass yields rows of four kinds in one schema, so that one read of the log serves everything: an **event** of the days
asked for, with its disposition and, for each metric, whether it is selected; a **dead letter** of those days; partial
**states** of a group of metrics, as an Arrow stream; and one **tally** of all records read, whatever their day.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date

import polars as pl
import pyarrow as pa

from batch_layer.manifest import ReadRange
from metrics.aggregation import Distinct
from metrics.catalog import Catalog, Metric
from metrics.disposition import DEAD_LETTER, DISPOSITIONS, Chunk, PartitionReader
from metrics.event import FIELD_PREFIX
from metrics.fold import Group, dimension, groups, matches, merge_states, partial_states
from metrics.window import DAY_MS, Window, to_epoch_ms

EVENT, DEAD, STATES, TALLY = "event", "dead_letter", "states", "tally"
STATE_BUCKETS = 8
"""States are merged in this many parts per group; a slice, at most an hour long, lies in one of them."""

HOUR_MS = 3_600_000
_MERGE_AT_ROWS = 50_000

_PLACE = {"topic_partition": "int", "offset": "bigint", "record_time": "bigint"}
_COMMON = {
    "kind": "string",
    **_PLACE,
    "event_id": "string",
    "event_time": "bigint",
    "disposition": "string",
    "reason": "string",
    "group": "int",
    "bucket": "int",
    "payload": "binary",
}
RECORDS = {"partition": "int", "offset": "bigint", "record_time": "bigint", "value": "binary"}
"""Spark types of what a pass reads; `record_time` in milliseconds."""


def dimension_column(name: str) -> str:
    """Where a dimension stands in rows: as text."""
    return f"d_{name}"


def argument_column(metric: Metric) -> str:
    """Where the field that a metric aggregates stands in rows: a decimal to add up, or text to tell apart."""
    return ("t_" if isinstance(metric.agg, Distinct) else "n_") + str(metric.agg.field)


def flag_column(metric: Metric) -> str:
    """Where it stands whether a metric selects the event."""
    return f"w_{metric.name}"


def row_schema(catalog: Catalog) -> dict[str, str]:
    """Names and Spark types of the columns that a pass yields."""
    schema = dict(_COMMON)
    for metric in catalog.metrics:
        schema |= {dimension_column(name): "string" for name in metric.by}
        if metric.agg.field is not None:
            text = isinstance(metric.agg, Distinct)
            schema[argument_column(metric)] = "string" if text else f"decimal(38,{metric.agg.state[0].dtype.scale})"
        schema[flag_column(metric)] = "boolean"
    return schema


def ddl(schema: Mapping[str, str]) -> str:
    """A schema as Spark writes it."""
    return ", ".join(f"`{name}` {kind}" for name, kind in schema.items())


@dataclass(frozen=True)
class Pass:
    """One pass over the topic partitions of a plan, one Spark partition each, in offset order.

    It is sent to the executors; called with the Arrow batches of one topic partition it yields batches of `row_schema`.
    """

    catalog: Catalog
    ranges: tuple[ReadRange, ...]
    days: tuple[date, ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads one topic partition."""
        reader = PartitionReader(self.catalog)
        schema = arrow_schema(self.catalog)
        starts = {r.topic_partition: r.start for r in self.ranges}
        spans = day_spans(self.days)
        folded: dict[int, _Fold] = {n: _Fold(group) for n, group in enumerate(groups(self.catalog))}
        tally = Tally()
        for batch in batches:
            if not batch.num_rows:
                continue
            topic_partition = batch.column("partition")[0].as_py()
            offsets, times, values = (batch.column(name).to_pylist() for name in ("offset", "record_time", "value"))
            start = starts[topic_partition]
            before = sum(offset < start for offset in offsets) if offsets[0] < start else 0
            if before:
                reader.remember(topic_partition, offsets[:before], times[:before], values[:before])
            if before == len(offsets):
                continue
            chunk = reader.read(topic_partition, offsets[before:], times[before:], values[before:])
            tally.add(chunk, len(offsets) - before)
            yield from _batches(_event_rows(self.catalog, chunk, spans), schema)
            yield from _batches(_dead_rows(chunk, spans), schema)
            counted = chunk.counted.filter(_in_days(spans, "event_time"))
            if counted.height:
                for fold in folded.values():
                    fold.add(counted)
        for number, fold in folded.items():
            yield from _batches(fold.rows(number), schema)
        yield from _batches(tally.rows(), schema)


class Tally:
    """Counts of all records that a pass read, for the manifest.

    `records` counts what Spark handed over, the ledger what became of it: the two must agree.
    """

    def __init__(self) -> None:
        self._records: dict[int, int] = {}
        self._ledgers: list[pl.DataFrame] = []

    def add(self, chunk: Chunk, records: int) -> None:
        """Takes note of a chunk made of so many records."""
        ledger = chunk.ledger
        if ledger.height:
            topic_partition = ledger["topic_partition"][0]
            self._records[topic_partition] = self._records.get(topic_partition, 0) + records
        self._ledgers.append(ledger)

    def rows(self) -> pl.DataFrame:
        """A row whose payload is the ledger: one row per block, with `read`, the records of the partition."""
        if not self._ledgers:
            return pl.DataFrame()
        ledger = (
            pl.concat(self._ledgers)
            .group_by("topic_partition", "block")
            .agg(pl.col("records", *DISPOSITIONS).sum())
            .sort("topic_partition", "block")
        )
        read = pl.DataFrame(
            list(self._records.items()), schema={"topic_partition": pl.Int32, "read": pl.UInt64}, orient="row"
        )
        return pl.DataFrame({"kind": [TALLY], "payload": [to_bytes(ledger.join(read, on="topic_partition"))]})


class _Fold:
    """The states of one group, merged now and then so that they stay as few as there are slices and dimensions."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._parts: list[pl.DataFrame] = []
        self._rows = 0
        self._merge_at = _MERGE_AT_ROWS

    def add(self, counted: pl.DataFrame) -> None:
        """Folds counted events."""
        states = partial_states(self._group, counted)
        self._parts.append(states)
        self._rows += states.height
        if self._rows > self._merge_at:
            merged = merge_states(self._group, pl.concat(self._parts))
            self._parts, self._rows = [merged], merged.height
            self._merge_at = max(_MERGE_AT_ROWS, 2 * self._rows)

    def rows(self, number: int) -> pl.DataFrame:
        """A row per bucket: kind, group, bucket and payload."""
        if not self._parts:
            return pl.DataFrame()
        states = merge_states(self._group, pl.concat(self._parts))
        bucket = (pl.col("slice_start") // HOUR_MS % STATE_BUCKETS).alias("bucket")
        parts = states.with_columns(bucket).partition_by("bucket", as_dict=True, include_key=False)
        return pl.DataFrame(
            [
                {"kind": STATES, "group": number, "bucket": key, "payload": to_bytes(part)}
                for (key,), part in sorted(parts.items())
            ],
            schema={"kind": pl.String, "group": pl.Int32, "bucket": pl.Int32, "payload": pl.Binary},
        )


def day_spans(days: Iterable[date]) -> list[tuple[int, int]]:
    """Milliseconds ``[start, end)`` of each run of consecutive days."""
    spans: list[tuple[int, int]] = []
    for day in sorted(days):
        start = to_epoch_ms(Window.of_day(day).start)
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], start + DAY_MS)
        else:
            spans.append((start, start + DAY_MS))
    return spans


def to_bytes(frame: pl.DataFrame) -> bytes:
    """A frame as an Arrow stream."""
    sink = io.BytesIO()
    frame.write_ipc_stream(sink)
    return sink.getvalue()


def from_bytes(payload: bytes) -> pl.DataFrame:
    """The frame of an Arrow stream."""
    return pl.read_ipc_stream(io.BytesIO(payload))


def arrow_schema(catalog: Catalog) -> pa.Schema:
    """`row_schema` in Arrow's types."""
    kinds = {
        "string": pa.string(),
        "int": pa.int32(),
        "bigint": pa.int64(),
        "binary": pa.binary(),
        "boolean": pa.bool_(),
    }
    return pa.schema(
        [
            (name, kinds[kind] if kind in kinds else pa.decimal128(38, int(kind.split(",")[1].rstrip(")"))))
            for name, kind in row_schema(catalog).items()
        ]
    )


def merged_states(group: Group, payloads: Iterable[bytes]) -> pl.DataFrame:
    """The states of a group from all its payloads, a sorted row per slice and dimensions."""
    return merge_states(group, pl.concat([from_bytes(payload) for payload in payloads]))


def _in_days(spans: list[tuple[int, int]], column: str) -> pl.Expr:
    return pl.any_horizontal([pl.col(column).is_between(start, end, closed="left") for start, end in spans])


def _event_rows(catalog: Catalog, chunk: Chunk, spans: list[tuple[int, int]]) -> pl.DataFrame:
    columns: dict[str, pl.Expr] = {}
    for metric in catalog.metrics:
        columns |= {dimension_column(name): dimension(name) for name in metric.by}
        if metric.agg.field is not None:
            argument = pl.col(FIELD_PREFIX + metric.agg.field)
            dtype = pl.String() if isinstance(metric.agg, Distinct) else metric.agg.state[0].dtype
            columns[argument_column(metric)] = argument.cast(dtype)
        columns[flag_column(metric)] = matches(metric)
    return chunk.events.filter(_in_days(spans, "event_time")).select(
        pl.lit(EVENT).alias("kind"),
        *_PLACE,
        "event_id",
        "event_time",
        "disposition",
        pl.col("disposition").alias("reason"),
        **columns,
    )


def _dead_rows(chunk: Chunk, spans: list[tuple[int, int]]) -> pl.DataFrame:
    return chunk.dead_letters.filter(_in_days(spans, "record_time")).select(
        pl.lit(DEAD).alias("kind"), *_PLACE, pl.lit(DEAD_LETTER).alias("disposition"), "reason"
    )


def _batches(rows: pl.DataFrame, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows with all columns of the schema, absent ones null, in Spark's plain Arrow types."""
    if rows.is_empty():
        return
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    yield from pa.table(columns, schema=schema).combine_chunks().to_batches()
