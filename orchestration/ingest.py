"""`lockstep ingest`: a file of events into the log, in the order in which they arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from infra.avro_writer import AvroWriter
from infra.settings import Settings
from metrics.catalog import Catalog
from orchestration.event_maker import EventMaker
from orchestration.external_sort import Row, sorted_rows
from orchestration.produce import AtRate, ByTime, Clock, LogWriter, Outgoing, Pace, ensure_event_topic
from orchestration.row_files import IngestError, Line, Rejected, RowFile

_REPORT_EVERY = 2_000
_REJECTS_SHOWN = 10

Progress = Callable[[str, int, int], None]
"""Told the phase (`reading`, in bytes, or `writing`, in events), how much more was done and the total, 0 if unknown."""


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest.

    Attributes:
        rate: events a second; None: as fast as possible.
        speed_up: replay by arrival, so many times as fast as it happened; None: as fast as possible.
        arrival: column with the time at which a row arrived; None: the event time is the arrival.
        keep_order: the file's order is the order of arrival; a record's timestamp is the greatest arrival so far.
        memory_bytes: about how much memory sorting may take; the rest goes to disk.
    """

    rate: float | None = None
    speed_up: float | None = None
    arrival: str | None = None
    keep_order: bool = False
    memory_bytes: int = 256_000_000

    def __post_init__(self) -> None:
        for name in ("rate", "speed_up"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                message = f"`{name}` must be greater than 0; got {value:g}. leave it out for full speed"
                raise IngestError(message)
        if self.rate is not None and self.speed_up is not None:
            message = f"only one of `rate` and `speed_up` may be given; got {self.rate:g} and {self.speed_up:g}"
            raise IngestError(message)


@dataclass(frozen=True)
class IngestResult:
    """What became of a file.

    Attributes:
        topic: where the events are.
        sent: events written and acknowledged.
        rejected: rows that are no events.
        seconds: how long it took.
        rejects_file: every rejected row, as NDJSON with `line`, `reason` and `raw`; None if there is none.
        rejects: the first of them.
        ids_from_content: whether event ids were made from the rows' content.
    """

    topic: str
    sent: int
    rejected: int
    seconds: float
    rejects_file: Path | None = None
    rejects: tuple[Rejected, ...] = ()
    ids_from_content: bool = False


@dataclass
class Rejects:
    """Keeps every rejected row in a file, which exists only if there is one."""

    path: Path
    count: int = 0
    first: list[Rejected] = field(default_factory=list)
    _file: IO[bytes] | None = None

    def add(self, rejected: Rejected) -> None:
        """Write a row down."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
        self._file.write(msgspec.json.encode(rejected) + b"\n")
        self.count += 1
        if len(self.first) < _REJECTS_SHOWN:
            self.first.append(rejected)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def ingest(  # noqa: PLR0913 - two of them are a clock and a listener
    settings: Settings,
    catalog: Catalog,
    file: Path,
    options: IngestOptions | None = None,
    progress: Progress | None = None,
    clock: Clock = time.time,
) -> IngestResult:
    """Write the rows of a CSV, NDJSON or Parquet file (plain, gzip or zstd) to the catalog's topic.

    Rows are written in order of arrival, ties in the file's order, and the arrival is the record's timestamp. A row
    without a readable time, or that is no row at all, is rejected: it goes to `rejects/` in the data directory with
    its line and the reason. Whatever else is wrong with it is for the layers to judge, in the dead-letter topic; but
    a value that an Avro schema has no place for can only be rejected.

    Raises:
        AvroNameError: the catalog's format is avro, and a field's name is none in Avro.
        SchemaRefusedError: the schema registry holds a schema that the catalog's fields do not follow.
        RegistryUnavailableError: no schema registry answers.
        IngestError: the file is missing, empty or damaged, or lacks a column.
        ProduceError: the log cannot be written to.
        KafkaUnavailableError: no broker answers.
    """
    options = options or IngestOptions()
    begun = clock()
    rejects = Rejects(settings.data_dir / "rejects" / f"{catalog.source}-{file.name}.ndjson")
    with RowFile(file) as source:
        encode = None if catalog.format == "json" else AvroWriter(settings, catalog)
        maker = EventMaker(catalog, source, round(begun * 1000), options.arrival, encode)
        ensure_event_topic(settings, catalog.topic, catalog.topic_partitions, round(begun * 1000), clock)
        try:
            rows = _made(source, maker, rejects, progress)
            if not options.keep_order:
                rows = sorted_rows(rows, memory_bytes=options.memory_bytes)
            sent = _write(settings, catalog, options, rows, progress, clock)
        finally:
            rejects.close()
    if sent == 0 and rejects.count == 0:
        message = f"the file to ingest must hold rows; `{file}` has none below its first line"
        raise IngestError(message)
    return IngestResult(
        catalog.topic,
        sent,
        rejects.count,
        clock() - begun,
        rejects.path if rejects.count else None,
        tuple(rejects.first),
        maker.ids_from_content,
    )


def _made(source: RowFile, maker: EventMaker, rejects: Rejects, progress: Progress | None) -> Iterator[Row]:
    told = 0
    for number, line in enumerate(source.rows()):
        made = maker.make(line) if isinstance(line, Line) else line
        if isinstance(made, Rejected):
            rejects.add(made)
        else:
            yield made
        if progress is not None and number % _REPORT_EVERY == 0:
            progress("reading", source.bytes_read - told, source.size_bytes)
            told = source.bytes_read
    if progress is not None:
        progress("reading", source.size_bytes - told, source.size_bytes)


def _write(  # noqa: PLR0913 - what `ingest` was given
    settings: Settings,
    catalog: Catalog,
    options: IngestOptions,
    rows: Iterator[Row],
    progress: Progress | None,
    clock: Clock,
) -> int:
    first = next(rows, None)
    if first is None:
        return 0
    ensure_event_topic(settings, catalog.topic, catalog.topic_partitions, first.at, clock)
    told = None if progress is None else lambda count: progress("writing", count, 0)
    with LogWriter(settings, catalog.topic, clock) as writer:
        writer.send_all(_outgoing(first, rows), _pace(options, clock), told)
    return writer.acknowledged


def _outgoing(first: Row, rows: Iterator[Row]) -> Iterator[Outgoing]:
    """The rows with timestamps that never go back; in order of arrival, they never do."""
    newest = first.at
    yield Outgoing(first.key, first.value, newest, first.partition)
    for row in rows:
        newest = max(newest, row.at)
        yield Outgoing(row.key, row.value, newest, row.partition)


def _pace(options: IngestOptions, clock: Clock) -> Pace | None:
    if options.rate is not None:
        return AtRate(clock(), options.rate)
    if options.speed_up is not None:
        return ByTime(clock(), options.speed_up)
    return None
