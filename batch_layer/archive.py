"""The archive of a log: every record as it stood there, in Parquet files, so that days outlive Kafka's retention.

A copied **stretch** of offsets is a file per day on which its records were sent, and a JSON that is written last and
names them with their counts: what no JSON names is not there. Stretches of a topic partition follow each other without
a gap. Where the archive is says one URL, of any file system that fsspec knows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fsspec
import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batch_layer.block_index import checksum_of
from batch_layer.log_reader import Records
from metrics.disposition import LEDGER_BLOCK
from metrics.window import DAY_MS, from_epoch_ms

SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),
        ("timestamp", pa.timestamp("ms", "UTC")),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))),
    ]
)
"""Columns of a file: records of one topic partition, in offset order."""

_ROWS_PER_GROUP = 20_000
_STRETCHES = "stretches"


class ArchiveError(Exception):
    """What the archive holds is not what was copied into it; the text says where and the way out."""


class ArchivedFile(msgspec.Struct, frozen=True):
    """A Parquet file, by its path below the topic's directory, and how many records it holds."""

    path: str
    records: int


class ArchivedBlock(msgspec.Struct, frozen=True):
    """What a stretch holds of a block of offsets: how many records, and `block_index.checksum_of` them."""

    block: int
    records: int
    checksum: int


class ArchivedStretch(msgspec.Struct, frozen=True):
    """Offsets ``[begin, end)`` of a topic partition that were copied.

    Attributes:
        first_time: Timestamp of the first record (ms), None where there is none.
        greatest_time: The greatest timestamp.
        files: In order of days.
        blocks: In order.
        schemas: Text of the writer schemas of the values, by the id that stands in them; none for JSON.
    """

    topic: str
    topic_id: str
    topic_partition: int
    begin: int
    end: int
    records: int
    first_time: int | None
    greatest_time: int | None
    files: tuple[ArchivedFile, ...]
    blocks: tuple[ArchivedBlock, ...]
    schemas: Mapping[str, str] = {}


@dataclass(frozen=True)
class Archive:
    """The archive of one topic, that of an id; it is sent to other processes.

    Attributes:
        url: Of the archive of all topics.
        topic: Its name.
        topic_id: By which the broker tells it from others of its name.
    """

    url: str
    topic: str
    topic_id: str

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url, "topic": self.topic, "topic_id": self.topic_id}

    @cached_property
    def _place(self) -> tuple[Any, str]:
        file_system, root = fsspec.core.url_to_fs(self.url)
        return file_system, f"{root.rstrip('/')}/{self.topic}/{self.topic_id}"

    def write(
        self, topic_partition: int, span: tuple[int, int], records: Records, schemas: Mapping[str, str]
    ) -> ArchivedStretch:
        """Copies a stretch: its files, then the JSON that makes them part of the archive; again is the same.

        Args:
            topic_partition: Whose.
            span: Offsets ``[begin, end)``.
            records: All of them.
            schemas: Writer schemas of the values.
        """
        file_system, root = self._place
        begin, end = span
        stem = f"{topic_partition:05d}-{begin:019d}-{end:019d}"
        table = _table(records)
        days = pl.Series(records.times, dtype=pl.Int64) // DAY_MS
        files = []
        for day in days.unique().sort().to_list():
            path = f"sent={from_epoch_ms(day * DAY_MS):%Y-%m-%d}/{stem}.parquet"
            chosen = table.filter((days == day).to_arrow())
            file_system.makedirs(f"{root}/{path.rpartition('/')[0]}", exist_ok=True)
            with file_system.open(f"{root}/{path}", "wb") as sink:
                pq.write_table(chosen, sink, compression="zstd", row_group_size=_ROWS_PER_GROUP)
            files.append(ArchivedFile(path, chosen.num_rows))
        stretch = ArchivedStretch(
            self.topic,
            self.topic_id,
            topic_partition,
            begin,
            end,
            len(records),
            records.times[0] if records.times else None,
            max(records.times, default=None),
            tuple(files),
            tuple(blocks_in(span, records)),
            schemas,
        )
        file_system.makedirs(f"{root}/{_STRETCHES}", exist_ok=True)
        _put(file_system, f"{root}/{_STRETCHES}/{stem}.json", msgspec.json.encode(stretch))
        return stretch

    def stretches(self) -> dict[int, list[ArchivedStretch]]:
        """By topic partition what was copied, in order of offsets; of what was copied twice, the longer.

        Raises:
            ArchiveError: A JSON cannot be read.
        """
        file_system, root = self._place
        names = file_system.glob(f"{root}/{_STRETCHES}/*.json")
        try:
            texts = file_system.cat(names) if names else {}
            found = [msgspec.json.decode(text, type=ArchivedStretch) for text in texts.values()]
        except msgspec.DecodeError as error:
            msg = f"archive `{self.url}` has a list of files that cannot be read: {error}. copy the log again"
            raise ArchiveError(msg) from error
        by_partition: dict[int, list[ArchivedStretch]] = {}
        for stretch in sorted(found, key=lambda one: (one.topic_partition, one.begin, -one.end)):
            mine = by_partition.setdefault(stretch.topic_partition, [])
            if not mine or stretch.end > mine[-1].end:
                mine.append(stretch)
        return by_partition

    def read(self, stretch: ArchivedStretch, start: int, end: int) -> Iterator[Records]:
        """The records of a stretch at offsets ``[start, end)``, in order, some at a time.

        Raises:
            ArchiveError: A file is gone, or does not hold as many records as were copied into it.
        """
        with ExitStack() as opened:
            files = [self._open(opened, file) for file in stretch.files]
            first, last = max(start, stretch.begin), min(end, stretch.end)
            for at in range(first, last, _ROWS_PER_GROUP):
                until = min(last, at + _ROWS_PER_GROUP)
                try:
                    whole = pa.concat_tables([_between(file, at, until) for file in files] or [SCHEMA.empty_table()])
                except (OSError, pa.ArrowException) as error:
                    raise _damaged(self.url, _named(stretch), str(error)) from error
                if whole.num_rows:
                    yield _records(whole.sort_by("offset"))

    def _open(self, opened: ExitStack, file: ArchivedFile) -> pq.ParquetFile:
        file_system, root = self._place
        try:
            held = pq.ParquetFile(opened.enter_context(file_system.open(f"{root}/{file.path}", "rb")))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.url, file.path, str(error)) from error
        if held.metadata.num_rows != file.records:
            raise _damaged(self.url, file.path, f"it holds {held.metadata.num_rows} records of {file.records}")
        return held

    def check(self, stretch: ArchivedStretch) -> None:
        """Reads a stretch and compares each of its blocks with what was copied.

        Raises:
            ArchiveError: They differ.
        """
        records = Records()
        for more in self.read(stretch, stretch.begin, stretch.end):
            records.extend(more)
        found = {block.block: block for block in blocks_in((stretch.begin, stretch.end), records)}
        for block in stretch.blocks:
            if found.get(block.block) != block:
                what = f"block {block.block} of partition {stretch.topic_partition} is not what was copied"
                raise _damaged(self.url, _named(stretch), what)


def blocks_in(span: tuple[int, int], records: Records) -> Iterator[ArchivedBlock]:
    """What each block of a stretch holds."""
    left = records
    for block in range(span[0] // LEDGER_BLOCK, -(-span[1] // LEDGER_BLOCK)):
        mine, left = left.split((block + 1) * LEDGER_BLOCK)
        yield ArchivedBlock(block, len(mine), checksum_of(mine, 0, len(mine)))


def reach(stretches: Sequence[ArchivedStretch], log_begin: int) -> list[ArchivedStretch]:
    """The stretches that reach without a gap up to where the log begins, or beyond; none where there is a gap."""
    found: list[ArchivedStretch] = []
    wanted = log_begin
    for stretch in reversed(stretches):
        if stretch.begin >= wanted:
            continue
        if stretch.end < wanted:
            break
        found.insert(0, stretch)
        wanted = stretch.begin
    return found


def _between(file: pq.ParquetFile, start: int, end: int) -> pa.Table:
    """The records of a file at offsets ``[start, end)``; of its groups, those that may hold one are read."""
    groups = []
    for number in range(file.num_row_groups):
        offsets = file.metadata.row_group(number).column(0).statistics
        if offsets.min < end and offsets.max >= start:
            groups.append(number)
    held = file.read_row_groups(groups).cast(SCHEMA)
    first, last = np.searchsorted(held["offset"].to_numpy(), [start, end]).tolist()
    return held.slice(first, last - first)


def _named(stretch: ArchivedStretch) -> str:
    return ", ".join(file.path for file in stretch.files)


def _table(records: Records) -> pa.Table:
    headers = [
        None if each is None else [{"key": key, "value": value} for key, value in each] for each in records.headers
    ]
    columns = (records.offsets, records.times, records.keys, records.values, headers)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def _records(table: pa.Table) -> Records:
    headers = [
        None if each is None else [(one["key"], one["value"]) for one in each] for each in table["headers"].to_pylist()
    ]
    times = table["timestamp"].cast(pa.int64()).to_pylist()
    return Records(table["offset"].to_pylist(), times, table["key"].to_pylist(), table["value"].to_pylist(), headers)


def _put(file_system: Any, path: str, text: bytes) -> None:  # noqa: ANN401 - fsspec has no types
    """Writes a file so that no reader sees half of it."""
    with file_system.transaction, file_system.open(path, "wb") as sink:
        sink.write(text)


def _damaged(url: str, path: str, what: str) -> ArchiveError:
    return ArchiveError(
        f"archive `{url}` is damaged at `{path}`: {what}. restore it, or copy its offsets again while the log has them"
    )
