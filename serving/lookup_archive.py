"""The archive of lookups: every version of a compacted topic, kept in ClickHouse before it is compacted away.

`lockstep speed` archives what comes while it runs, and a batch run what there is when it begins. Rows are replaceable
by their place in the topic, so several may archive at once. What was gone before it was archived is noted as a gap. A
topic that is written in transactions has offsets without a record, which look like such.
"""

import base64
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from infra import kafka
from infra.clickhouse import insert_frame, query_frame, quote
from infra.settings import Settings
from metrics.catalog import Lookup
from metrics.lookup import RECORDS, Read, VersionReader
from metrics.window import from_epoch_ms, to_epoch_ms
from serving.lookup_tables import ARCHIVED, DEAD_LETTERS, GAPS, versions_of

_AT_ONCE = 10_000
_POLL_S = 0.5
_TIME = pl.Datetime("ms", "UTC")

logger = logging.getLogger(__name__)


class LookupTopicError(Exception):
    """A lookup's topic is not the one that was archived."""


@dataclass(frozen=True)
class Gap:
    """Offsets ``[start, end)`` of a lookup's topic partition that were gone before they were archived.

    Attributes:
        complete_from: From when on (ms) every version that is valid is known again.
    """

    topic_partition: int
    start: int
    end: int
    complete_from: int


class LookupLog:
    """A lookup's topic, read from positions on.

    Attributes:
        positions: By topic partition, the offset to be read next.
        holes: Offsets ``(topic partition, start, end, expired)`` that had no record when they were to be read; expired
            are those before the topic's beginning. Whoever takes note of them empties it.

    Args:
        settings: Where Kafka is.
        lookup: Whose topic it is.
        positions: Where to begin; partitions that are not named begin at 0.

    Raises:
        LookupTopicError: The topic ends before a position.
        TopicError: There is no such topic.
    """

    def __init__(self, settings: Settings, lookup: Lookup, positions: Mapping[int, int]) -> None:
        self._settings = settings
        self._lookup = lookup
        self.holes: list[tuple[int, int, int, bool]] = []
        offsets = kafka.log_offsets(settings, lookup.topic)
        self.positions = {number: positions.get(number, 0) for number in offsets}
        for number, (begin, end) in offsets.items():
            if (kept := self.positions[number]) > end:
                msg = (
                    f"topic `{lookup.topic}` of lookup `{lookup.name}` must reach to offset {kept} of partition "
                    f"{number}, up to which it is archived; it ends at {end}. it was made anew: give it another name"
                )
                raise LookupTopicError(msg)
            self._expire(number, begin)
        self._consumer = kafka.consumer(
            settings, f"lockstep-lookup-{lookup.name}", {"enable.partition.eof": True, "fetch.error.backoff.ms": 100}
        )
        self._assign()

    def read(self, timeout_s: float) -> pl.DataFrame:
        """The next records, after at most so long; none where nothing came."""
        records: list[tuple[Any, ...]] = []
        for message in self._consumer.consume(_AT_ONCE, timeout_s):
            if (error := message.error()) is not None:
                self._on_error(error, message)
                continue
            number, offset = _place(message)
            if offset < self.positions[number]:
                continue
            if offset > self.positions[number]:
                self.holes.append((number, self.positions[number], offset, False))
            self.positions[number] = offset + 1
            records.append((number, offset, message.timestamp()[1], message.key(), message.value()))
        return pl.DataFrame(records, schema=RECORDS, orient="row")

    def ends(self) -> dict[int, int]:
        """By topic partition, where the topic ends now."""
        return {number: end for number, (_, end) in kafka.log_offsets(self._settings, self._lookup.topic).items()}

    def has_reached(self, ends: Mapping[int, int]) -> bool:
        """Whether everything before these offsets has been read."""
        return all(self.positions[number] >= end for number, end in ends.items() if number in self.positions)

    def close(self) -> None:
        """Closes the consumer."""
        self._consumer.close()

    def _assign(self) -> None:
        places = [TopicPartition(self._lookup.topic, number, at) for number, at in self.positions.items()]
        self._consumer.assign(places)

    def _expire(self, number: int, begin: int) -> None:
        if self.positions[number] < begin:
            self.holes.append((number, self.positions[number], begin, True))
            self.positions[number] = begin

    def _on_error(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            # what lies between is the end of a transaction: the last record of a topic is never compacted away
            number, end = _place(message)
            self.positions[number] = max(self.positions[number], end)
        elif code in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
            for number, (begin, _) in kafka.log_offsets(self._settings, self._lookup.topic).items():
                self._expire(number, begin)
            self._assign()
        elif error.fatal():
            raise KafkaException(error)
        else:
            logger.warning("kafka: %s; waiting", error.str())


def _place(message: Message) -> tuple[int, int]:
    number, offset = message.partition(), message.offset()
    assert number is not None
    assert offset is not None
    return number, offset


class Archive:
    """Keeps the versions of a lookup; everything before its position is in ClickHouse.

    Args:
        settings: Where Kafka is.
        client: Of the source's database.
        lookup: What is kept.
        now: The wall clock.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        lookup: Lookup,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._lookup = lookup
        self._now = now
        self._log = LookupLog(settings, lookup, archived_positions(client, lookup))
        self._reader = VersionReader(lookup, _reached(client, lookup))
        self._open: dict[int, list[tuple[int, int]]] = {}
        self._closes_at: dict[int, int] = {}
        self._greatest: dict[int, int] = {}

    @property
    def positions(self) -> dict[int, int]:
        """By topic partition, the offset up to which versions are kept; exclusive."""
        return dict(self._log.positions)

    def follow(self, timeout_s: float = _POLL_S) -> int:
        """Keeps what has come, after at most so long; returns the number of records."""
        before = self.positions
        records = self._log.read(timeout_s)
        self._note_holes()
        for (number,), part in records.partition_by("topic_partition", as_dict=True).items():
            if number in self._open:
                greatest = int(part["record_time"].max())  # type: ignore[arg-type]
                self._greatest[number] = max(greatest, self._greatest.get(number, greatest))
        self._keep(self._reader.read(records), records)
        self._close_gaps()
        moved = {number: at for number, at in self.positions.items() if at != before.get(number)}
        if moved:
            rows = pl.DataFrame(
                list(moved.items()), schema={"topic_partition": pl.Int32, "next_offset": pl.Int64}, orient="row"
            )
            insert_frame(self._client, quote(ARCHIVED), self._named(rows))
        return records.height

    def catch_up(self) -> None:
        """Keeps everything up to the topic's end as of now."""
        ends = self._log.ends()
        # a hole before the beginning is noted even where nothing is left to read
        self.follow(0.0)
        while not self._log.has_reached(ends):
            self.follow()

    def close(self) -> None:
        """Ends the reading."""
        self._log.close()

    def _note_holes(self) -> None:
        """Takes note of new gaps at once, complete from now on; what is read next may show that it is from earlier."""
        holes, self._log.holes = self._log.holes, []
        if not holes:
            return
        ends = self._log.ends()
        now = to_epoch_ms(self._now())
        for number, start, end, expired in holes:
            logger.warning(
                "offsets %d to %d of `%s`/%d were gone before lookup `%s` was archived",
                start,
                end,
                self._lookup.topic,
                number,
                self._lookup.name,
            )
            self._insert_gap(Gap(number, start, end, now))
            if not expired:
                # what was compacted away had been replaced by a later record of its key, before the topic's end
                self._open.setdefault(number, []).append((start, end))
                self._closes_at[number] = ends[number]

    def _close_gaps(self) -> None:
        for number, closes_at in list(self._closes_at.items()):
            if self._log.positions[number] >= closes_at and number in self._greatest:
                for start, end in self._open.pop(number):
                    self._insert_gap(Gap(number, start, end, self._greatest[number]))
                del self._closes_at[number]

    def _insert_gap(self, gap: Gap) -> None:
        row = {
            "topic_partition": gap.topic_partition,
            "start_offset": gap.start,
            "end_offset": gap.end,
            "complete_from": from_epoch_ms(gap.complete_from),
        }
        types = {"topic_partition": pl.Int32(), "complete_from": _TIME}
        insert_frame(self._client, quote(GAPS), self._named(pl.DataFrame([row], schema_overrides=types)))

    def _keep(self, read: Read, records: pl.DataFrame) -> None:
        place = ["topic_partition", "offset"]
        if read.dead_letters.height:
            first = read.dead_letters.row(0, named=True)
            logger.warning(
                "%d records of lookup `%s` are no versions, first offset %d of `%s`/%d: %s, %s",
                read.dead_letters.height,
                self._lookup.name,
                first["offset"],
                self._lookup.topic,
                first["topic_partition"],
                first["reason"],
                first["detail"],
            )
            rows = read.dead_letters.with_columns(pl.col("record_time").cast(_TIME))
            insert_frame(self._client, quote(DEAD_LETTERS), self._named(rows))
        if read.versions.height:
            source = records.select(*place, "record_time", "value")
            rows = read.versions.join(source, on=place, how="left", maintain_order="left")
            kept = rows.select(
                "key",
                pl.col("valid_from").cast(_TIME),
                *place,
                pl.col("record_time").cast(_TIME),
                pl.col("is_deleted").cast(pl.UInt8),
                _fields(self._lookup, rows),
                "value",
                topic=pl.lit(self._lookup.topic),
            )
            insert_frame(self._client, quote(versions_of(self._lookup)), kept)

    def _named(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(lookup=pl.lit(self._lookup.name), topic=pl.lit(self._lookup.topic))


def archived_positions(client: Client, lookup: Lookup) -> dict[int, int]:
    """By topic partition, the offset up to which a lookup is archived; exclusive."""
    sql = (
        f"SELECT topic_partition, max(next_offset) FROM {quote(ARCHIVED)} "
        "WHERE lookup = {lookup:String} AND topic = {topic:String} GROUP BY topic_partition"
    )
    rows = client.query(sql, parameters=_parameters(lookup)).result_rows
    return {int(number): int(offset) for number, offset in rows}


def archived_records(client: Client, lookup: Lookup) -> pl.DataFrame:
    """The archived records of a lookup, `metrics.lookup.RECORDS` in order, those that were no versions among them.

    They are read anew by whoever asks: the fields that a catalog names may be others by now.
    """
    columns = (
        "topic_partition, offset, toUnixTimestamp64Milli(record_time) AS record_time, base64Encode(key) AS key, "
        "base64Encode(value) AS value"
    )
    sql = (
        f"SELECT {columns} FROM {quote(versions_of(lookup))} FINAL WHERE topic = {{topic:String}} UNION ALL "
        f"SELECT {columns} FROM {quote(DEAD_LETTERS)} FINAL "
        "WHERE lookup = {lookup:String} AND topic = {topic:String} ORDER BY topic_partition, offset"
    )
    found = query_frame(client, f"SELECT * FROM ({sql}) ORDER BY topic_partition, offset", _parameters(lookup))
    return found.select(
        pl.col("topic_partition").cast(pl.Int32),
        pl.col("offset").cast(pl.Int64),
        pl.col("record_time").cast(pl.Int64),
        *(pl.Series(name, _decoded(found[name]), dtype=pl.Binary) for name in ("key", "value")),
    )


def gaps(client: Client, lookup: Lookup) -> list[Gap]:
    """What is missing from the archive of a lookup, in the order of the topic."""
    sql = (
        "SELECT topic_partition, start_offset, end_offset, toUnixTimestamp64Milli(complete_from) "
        f"FROM {quote(GAPS)} FINAL WHERE lookup = {{lookup:String}} AND topic = {{topic:String}} "
        "ORDER BY topic_partition, start_offset"
    )
    rows = client.query(sql, parameters=_parameters(lookup)).result_rows
    return [Gap(*map(int, row)) for row in rows]


def _reached(client: Client, lookup: Lookup) -> dict[tuple[int, str], int]:
    sql = (
        "SELECT topic_partition, key, toUnixTimestamp64Milli(max(valid_from)) "
        f"FROM {quote(versions_of(lookup))} WHERE topic = {{topic:String}} GROUP BY topic_partition, key"
    )
    rows = client.query(sql, parameters={"topic": lookup.topic}).result_rows
    return {(int(number), key): int(moment) for number, key, moment in rows}


def _parameters(lookup: Lookup) -> dict[str, str]:
    return {"lookup": lookup.name, "topic": lookup.topic}


def _decoded(column: Iterable[str | None]) -> list[bytes | None]:
    return [None if text is None else base64.b64decode(text) for text in column]


def _fields(lookup: Lookup, versions: pl.DataFrame) -> pl.Series:
    """The values of each version as text, by field; those that are NULL are left out."""
    entry = pl.Struct({"key": pl.String(), "value": pl.String()})
    texts = versions.select(pl.col(f"f_{joined.name}").cast(pl.String) for joined in lookup.joined)
    names = [field.name for field in lookup.fields]
    rows = [
        [] if deleted else [{"key": n, "value": v} for n, v in zip(names, row, strict=True) if v is not None]
        for row, deleted in zip(texts.iter_rows(), versions["is_deleted"], strict=True)
    ]
    return pl.Series("fields", rows, dtype=pl.List(entry))
