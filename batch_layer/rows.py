"""From records to rows: what one pass over a topic partition hands to Spark.

A pass yields rows of a few kinds in one schema, so that one read of the log serves everything. Most hold a payload, an
Arrow stream, for Spark to keep and move as it is: the **events** of the days asked for, and those that a session or an
alert of theirs may reach, with their dispositions and the fields that metrics use; hashes of their **ids**; the partial
**states** of a group of metrics; and, of all records read, whatever their day, one **tally** and the **repairs** among
them. A **dead letter** of those days, and an event that was **left out** of what is counted, is a row of its own.
"""

import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import polars as pl
import pyarrow as pa

from batch_layer.log_reader import Records, in_blocks
from batch_layer.lookups import Versions
from batch_layer.manifest import ReadRange, lookback_ms
from metrics.catalog import Catalog, Field
from metrics.disposition import COUNTED, DEAD_LETTER, DISPOSITIONS, Chunk, PartitionReader
from metrics.event import FIELD_PREFIX, Unframe
from metrics.fold import SESSION_KEY, Group, groups, merge_states, partial_states
from metrics.window import DAY_MS, Window, to_epoch_ms

EVENT, IDS, STATES, TALLY, REPAIRS = "event", "ids", "states", "tally", "repairs"
DEAD, LEFT_OUT = "dead_letter", "left_out"
EPOCH = date(1970, 1, 1)
ID_BUCKETS = 16
"""Hashes of ids are compared in this many parts."""

STATE_BUCKETS = 8
"""States are merged in this many parts per group; a slice, at most an hour long, or a session key lies in one."""

HOUR_MS = 3_600_000
_MERGE_AT_ROWS = 50_000

_AT_ONCE = 100_000
"""Offsets that are decoded and folded together: a pass takes a quarter less time than by 20,000."""

_PLACE = {"topic_partition": "int", "offset": "bigint", "record_time": "bigint"}
ROW = {
    "kind": "string",
    **_PLACE,
    "event_id": "string",
    "event_time": "bigint",
    "disposition": "string",
    "reason": "string",
    "group": "int",
    "bucket": "int",
    "day": "int",
    "payload": "binary",
}
"""Names and Spark types of the columns that a pass yields.

`day` is that of events and states, since `EPOCH`; of the states of sessions, which may go on into the next, null.
"""

Read = Callable[[int, int, int], Iterator[Records]]
"""Gives the records of a topic partition from one offset to another, exclusive; see `batch_layer.reading.LogReader`."""

REPAIRED = {"topic_partition": pl.Int32(), "offset": pl.Int64(), "repaired_offset": pl.Int64()}
"""Columns of repairs: the place of a dead letter, and the offset of the first event that names it."""


def used_fields(catalog: Catalog) -> tuple[Field, ...]:
    """The fields that metrics and alerts compute from, in the order of the catalog."""
    return tuple(field for field in catalog.columns.values() if field.name in catalog.used)


def ddl(schema: Mapping[str, str]) -> str:
    """A schema as Spark writes it."""
    return ", ".join(f"`{name}` {kind}" for name, kind in schema.items())


@dataclass(frozen=True)
class Pass:
    """One pass over the ranges of a plan, each a topic partition and a Spark task, in offset order.

    It is sent to the executors; called with numbers of ranges, as `spark.range` has them, it yields batches of
    `ROW`.
    """

    catalog: Catalog
    ranges: tuple[ReadRange, ...]
    days: tuple[date, ...]
    read: Read
    unframe: Unframe | None = None
    lookups: Versions | None = None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads ranges."""
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from self.rows(self.ranges[number])

    def rows(self, span: ReadRange) -> Iterator[pa.RecordBatch]:
        """Reads one range."""
        reader = PartitionReader(self.catalog, self.unframe, self.lookups.exact if self.lookups else None)
        schema = arrow_schema(ROW)
        number = span.topic_partition
        spans = day_spans(self.days)
        reached = neighbourhood(self.catalog, spans)
        folded: dict[int, _Fold] = {n: _Fold(group) for n, group in enumerate(groups(self.catalog))}
        tally = Tally()
        repairs = pl.DataFrame(schema=REPAIRED)
        identities: list[pl.Series] = []
        read = self.read(number, span.remember_from, span.end)
        for _, records in in_blocks(read, span.remember_from, span.end, _AT_ONCE):
            before, rest = records.split(span.start)
            if before:
                reader.remember(number, before.offsets, before.times, before.values)
            if not rest:
                continue
            chunk = reader.read(number, rest.offsets, rest.times, rest.values)
            tally.add(chunk, len(rest))
            if origins := rest.origins(self.catalog.topic, number):
                repairs = first_repairs([repairs, _repairs(chunk, origins)])
            events = _events(self.catalog, chunk, reached)
            identities.append(events["identity"])
            yield from to_batches(_event_rows(number, events), schema)
            yield from to_batches(_left_out_rows(events, spans), schema)
            yield from to_batches(_dead_rows(chunk, spans), schema)
            near = chunk.counted.filter(in_spans("event_time", reached))
            if self.lookups:
                near = self.lookups.expected(near)
            counted = near.filter(in_spans("event_time", spans))
            for fold in folded.values():
                fold.add(near if fold.group.session else counted)
        for group, fold in folded.items():
            # the place orders the states of several topic partitions, on which sums of floats depend
            yield from to_batches(fold.rows(group, number), schema)
        yield from to_batches(_id_rows(identities), schema)
        yield from to_batches(tally.rows(), schema)
        if not repairs.is_empty():
            yield from to_batches(pl.DataFrame({"kind": [REPAIRS], "payload": [to_bytes(repairs)]}), schema)


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
        self.group = group
        self._parts: list[pl.DataFrame] = []
        self._rows = 0
        self._merge_at = _MERGE_AT_ROWS

    def add(self, counted: pl.DataFrame) -> None:
        """Folds counted events."""
        if counted.is_empty():
            return
        states = partial_states(self.group, counted)
        self._parts.append(states)
        self._rows += states.height
        if self._rows > self._merge_at:
            merged = merge_states(self.group, pl.concat(self._parts))
            self._parts, self._rows = [merged], merged.height
            self._merge_at = max(_MERGE_AT_ROWS, 2 * self._rows)

    def rows(self, number: int, topic_partition: int) -> pl.DataFrame:
        """A row per day and bucket: kind, topic_partition, group, bucket, day and payload."""
        if not self._parts:
            return pl.DataFrame()
        states = merge_states(self.group, pl.concat(self._parts))
        split = states.with_columns(bucket_of(self.group, states), _day(self.group).alias("day"))
        parts = split.partition_by("day", "bucket", as_dict=True, include_key=False)
        return pl.DataFrame(
            [
                {
                    "kind": STATES,
                    "topic_partition": topic_partition,
                    "group": number,
                    "bucket": bucket,
                    "day": day,
                    "payload": to_bytes(part),
                }
                for (day, bucket), part in sorted(parts.items())
            ],
            schema={
                "kind": pl.String,
                "topic_partition": pl.Int32,
                "group": pl.Int32,
                "bucket": pl.Int32,
                "day": pl.Int32,
                "payload": pl.Binary,
            },
        )


def first_repairs(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Repairs together: of those of one dead letter, the first."""
    repairs = pl.concat([pl.DataFrame(schema=REPAIRED), *frames])
    return repairs.group_by("topic_partition", "offset").agg(pl.col("repaired_offset").min())


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


def to_bytes(frame: pl.DataFrame, *, compressed: bool = False) -> bytes:
    """A frame as an Arrow stream."""
    sink = io.BytesIO()
    frame.write_ipc_stream(sink, compression="lz4" if compressed else "uncompressed")
    return sink.getvalue()


def from_bytes(payload: bytes) -> pl.DataFrame:
    """The frame of an Arrow stream."""
    return pl.read_ipc_stream(io.BytesIO(payload))


def neighbourhood(catalog: Catalog, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Milliseconds ``[start, end)`` in which an event may matter to the days of these spans.

    A session that its greatest length cuts short ends where the next one begins: the millisecond after a day is in.
    """
    lookback = lookback_ms(catalog)
    return [(start - lookback, end + 1) for start, end in spans] if lookback else [*spans]


def arrow_schema(schema: Mapping[str, str]) -> pa.Schema:
    """Spark types as Arrow's."""
    kinds = {
        "string": pa.string(),
        "int": pa.int32(),
        "bigint": pa.int64(),
        "double": pa.float64(),
        "binary": pa.binary(),
        "boolean": pa.bool_(),
    }
    return pa.schema(
        [
            (name, kinds[kind] if kind in kinds else pa.decimal128(38, int(kind.split(",")[1].rstrip(")"))))
            for name, kind in schema.items()
        ]
    )


def to_batches(rows: pl.DataFrame, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
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


def merged_states(group: Group, payloads: Iterable[bytes]) -> pl.DataFrame:
    """The states of a group from all its payloads, a sorted row per slice and dimensions."""
    return merge_states(group, pl.concat([from_bytes(payload) for payload in payloads]))


def in_spans(time: str | pl.Expr, spans: Iterable[tuple[int, int]]) -> pl.Expr:
    """Whether a time in ms lies in one of some stretches, ``[start, end)``."""
    column = pl.col(time) if isinstance(time, str) else time
    return pl.any_horizontal([column.is_between(start, end, closed="left") for start, end in spans])


def bucket_of(group: Group, states: pl.DataFrame) -> pl.Expr:
    """Which part of a group a row belongs to; all instants of a session key to one."""
    if group.session is None:
        return (pl.col("slice_start") // HOUR_MS % STATE_BUCKETS).alias("bucket")
    keys = states[SESSION_KEY].unique()
    buckets = pl.Series([zlib.crc32(key.encode()) % STATE_BUCKETS for key in keys], dtype=pl.Int64)
    return pl.col(SESSION_KEY).replace_strict(keys, buckets, return_dtype=pl.Int64).alias("bucket")


def _day(group: Group) -> pl.Expr:
    return pl.lit(None, pl.Int32) if group.session else (pl.col("slice_start") // DAY_MS).cast(pl.Int32)


def _events(catalog: Catalog, chunk: Chunk, reached: list[tuple[int, int]]) -> pl.DataFrame:
    """What is kept of events: their places, `identity`, a hash of id and time, and the fields that metrics use."""
    return chunk.events.filter(in_spans("event_time", reached)).select(
        *_PLACE,
        "event_id",
        "event_time",
        "disposition",
        pl.struct("event_id", "event_time").hash().alias("identity"),
        *(FIELD_PREFIX + field.name for field in used_fields(catalog)),
    )


def _event_rows(topic_partition: int, events: pl.DataFrame) -> pl.DataFrame:
    """A row per day."""
    by_day = events.with_columns(_day=(pl.col("event_time") // DAY_MS).cast(pl.Int32))
    return pl.DataFrame(
        [
            {
                "kind": EVENT,
                "topic_partition": topic_partition,
                "day": day,
                "payload": to_bytes(part, compressed=True),
            }
            for (day,), part in sorted(by_day.partition_by("_day", as_dict=True, include_key=False).items())
        ],
        schema={"kind": pl.String, "topic_partition": pl.Int32, "day": pl.Int32, "payload": pl.Binary},
    )


def _id_rows(identities: list[pl.Series]) -> pl.DataFrame:
    """A row per bucket of hashes: 64 bits each, one after the other."""
    if not identities:
        return pl.DataFrame()
    hashes = pl.concat(identities).to_frame("identity").with_columns(bucket=pl.col("identity") % ID_BUCKETS)
    parts = sorted(hashes.partition_by("bucket", as_dict=True, include_key=False).items())
    return pl.DataFrame(
        [
            {"kind": IDS, "bucket": bucket, "payload": part["identity"].to_numpy().tobytes()}
            for (bucket,), part in parts
        ],
        schema={"kind": pl.String, "bucket": pl.Int32, "payload": pl.Binary},
    )


def _left_out_rows(events: pl.DataFrame, spans: list[tuple[int, int]]) -> pl.DataFrame:
    return events.filter((pl.col("disposition") != COUNTED) & in_spans("event_time", spans)).select(
        pl.lit(LEFT_OUT).alias("kind"),
        *_PLACE,
        "event_id",
        "event_time",
        "disposition",
        pl.col("disposition").alias("reason"),
    )


def _dead_rows(chunk: Chunk, spans: list[tuple[int, int]]) -> pl.DataFrame:
    return chunk.dead_letters.filter(in_spans("record_time", spans)).select(
        pl.lit(DEAD).alias("kind"), *_PLACE, pl.lit(DEAD_LETTER).alias("disposition"), "reason"
    )


def _repairs(chunk: Chunk, origins: Mapping[int, int]) -> pl.DataFrame:
    kinds = dict.fromkeys(("repaired_offset", "offset"), pl.Int64)
    named = pl.DataFrame({"repaired_offset": [*origins], "offset": [*origins.values()]}, schema=kinds)
    events = chunk.events.select("topic_partition", repaired_offset="offset")
    return events.join(named, on="repaired_offset").select(*REPAIRED)
