"""What a decision is made from: the run's manifest and how far the speed layer has come, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import msgspec

NOT_COUNTED = ("late", "duplicate", "id_conflict", "dead_letter")
"""Dispositions that the speed layer leaves out, in the order in which they are told."""


class ManifestError(ValueError):
    """A manifest in `batch_runs` that cannot be read; the message names the run and the way out."""


class OffsetRange(msgspec.Struct, frozen=True, kw_only=True):
    """Offsets `[start, end)` of one topic partition that a run read, and what became of each record in them.

    The log had `[log_begin, log_end)` then, and its archive went back to `begin`; None where a run did not say.
    """

    topic_partition: int
    start: int
    end: int
    log_begin: int
    log_end: int
    records: int
    begin: int | None = None
    counted: int = 0
    late: int = 0
    duplicate: int = 0
    id_conflict: int = 0
    dead_letter: int = 0

    @property
    def reaches_from(self) -> int:
        """The first offset that the log or its archive had."""
        return self.log_begin if self.begin is None else min(self.begin, self.log_begin)

    @property
    def disposed(self) -> int:
        """Records with a disposition; equals `records` when none was lost."""
        return self.counted + self.late + self.duplicate + self.id_conflict + self.dead_letter


class Indexed(msgspec.Struct, frozen=True, kw_only=True):
    """What the index of the log, made by another reader than the run, counts of a day: events and dead letters."""

    events: int
    dead_letters: int


class LedgerBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Dispositions of one fixed block of offsets, as either layer counted them."""

    topic_partition: int
    block: int
    records: int
    counted: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch run read for one partition.

    Attributes:
        ranges: the offsets read, per topic partition. They are those of the run, which may serve several days.
        dispositions: records of this day per disposition.
        events: events of this day in the exact values, each once.
        outside: events in the ranges that belong to other days.
        closed: whether the watermark had passed the day's end and the lateness when the run began.
        ledger: dispositions per block, when the run recorded them.
        checksum: of the ids and times of `events`, 64 bits in hexadecimal digits; to be compared between runs
            of the same `code_version` alone.
        cpu_seconds: of the run and of Spark on its machine.
        indexed: what the index of the log counts of the day; None where a run had none and read to the log's end.
        topic_id: of the topic that was read, by which the broker tells it from others of its name.
    """

    run_id: str
    source: str
    topic: str
    partition: date
    catalog_version: str
    ranges: tuple[OffsetRange, ...]
    dispositions: dict[str, int]
    events: int
    outside: int = 0
    closed: bool = True
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    checksum: str = ""
    code_version: str = ""
    ledger: tuple[LedgerBlock, ...] = ()
    indexed: Indexed | None = None
    topic_id: str = ""

    def disposed(self, disposition: str) -> int:
        """Records of this day with that disposition."""
        return self.dispositions.get(disposition, 0)

    @property
    def late_ratio(self) -> float:
        """Late events for each event that arrived, in [0, 1]; 0 when none did."""
        arrived = self.disposed("counted") + self.disposed("late")
        return self.disposed("late") / arrived if arrived else 0.0


def read_manifest(run_id: str, text: str) -> Manifest:
    """A manifest from its JSON.

    Raises:
        ManifestError: the text is not a manifest.
    """
    try:
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        message = (
            f"manifest of run `{run_id}` cannot be read: {error}. run the batch layer for the day again, so that it is"
            " published with a complete manifest"
        )
        raise ManifestError(message) from error


@dataclass(frozen=True)
class Position:
    """How far the speed layer has published one topic partition.

    Attributes:
        watermark: no event before it, other than late ones, is still to come.
        next_offset: every offset before it is in the tables.
        at: when this was written.
    """

    topic_partition: int
    watermark: datetime
    next_offset: int
    at: datetime


@dataclass(frozen=True)
class Progress:
    """Positions of the speed layer, by topic partition."""

    positions: Mapping[int, Position]

    @property
    def watermark(self) -> datetime | None:
        """The least data watermark; None before the speed layer has published anything."""
        return min((position.watermark for position in self.positions.values()), default=None)

    @property
    def at(self) -> datetime | None:
        """When the latest position was written."""
        return max((position.at for position in self.positions.values()), default=None)

    def behind(self, ranges: tuple[OffsetRange, ...]) -> dict[int, int]:
        """Topic partition to offsets that the run read and the speed layer has not published; empty when none."""
        missing = {}
        for read in ranges:
            position = self.positions.get(read.topic_partition)
            reached = position.next_offset if position else read.start
            if read.records and reached < read.end:
                missing[read.topic_partition] = read.end - max(reached, read.start)
        return missing

    def open_from(self, ranges: tuple[OffsetRange, ...], allowed_lateness: timedelta) -> datetime | None:
        """Windows that end after this moment are not closed yet.

        None when every window is open, because offsets that the run read are still to be published. A window is closed
        when it ends at this moment or before.
        """
        if self.behind(ranges) or self.watermark is None:
            return None
        return self.watermark - allowed_lateness


@dataclass(frozen=True)
class Publication:
    """The run that a day currently shows.

    Attributes:
        metric_versions: the metric definitions that the run computed.
    """

    partition: date
    run_id: str
    metric_versions: tuple[str, ...]
    published_at: datetime
