"""What was known of a lookup when offsets of a log were read: settled once for each offset, for all who ever read it.

A chunk may be read again, after a failure or a restart, and at the same time by a job beside another. All of them must
join it with the same versions: otherwise events move from one row of a table to another and the former row stays, and
the batch layer cannot say which of two answers was published. So the first row of `lookup_positions` for an offset
holds, and whoever reads offsets that none covers yet claims them: it asks, writes, and asks again what holds now.

Two that claim at the same moment begin at the same offset, the end of what is covered, and their rows bear a token made
of it: ClickHouse keeps the first and drops the other. A claim that follows what holds and says the same replaces that
row by a longer one, so there are as many rows as there are changes. How far a row reaches is written down before
anything that was read with it is put out, as nothing else says it to whoever begins again behind the last row.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

import polars as pl
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from infra.clickhouse import ClickHouseUnavailableError, connect, insert_frame, quote
from infra.settings import Settings
from metrics.catalog import Lookup
from metrics.lookup import Known
from serving.lookup_positions import Span, recorded
from serving.lookup_tables import POSITIONS

_RETRY_S = 1.0

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Record(Protocol):
    """The spans of one lookup and one topic partition, shared with all others who read it."""

    def spans(self, start: int, end: int, since: int) -> list[Span]:
        """Those that hold something of ``[start, end)`` or end at `start`, first opened first; none before `since`."""

    def claim(self, span: Span, token: str) -> None:
        """Adds a span, or lengthens the one that was opened then; not if the token has been used."""


class SpansRead:
    """The spans of one lookup and one topic partition as a job comes to them, chunk by chunk."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._spans: list[Span] = []
        self._end: int | None = None

    def settle(self, start: int, end: int, positions: Callable[[], Mapping[int, int]]) -> list[Span]:
        """Spans that cover ``[start, end)``, first opened first.

        Args:
            start: First offset of a chunk.
            end: Of the chunk; exclusive.
            positions: What is known here now, for offsets that no span covers.
        """
        # offsets between two chunks that hold no record belong to the span around them
        start = start if self._end is None else min(start, self._end)
        tries: Counter[int] = Counter()
        while _reach(self._spans, start) < end:
            since = min((span.start for span in self._spans if span.start <= start <= span.end), default=0)
            self._spans = self._record.spans(start, end, since)
            free = _reach(self._spans, start)
            if free < end:
                told = positions()
                before = [span for span in self._spans if span.end == free and span.positions == told]
                # a token that is used although nothing holds is from before the rows were deleted
                token = f"{free}/{tries[free]}"
                self._record.claim(replace(before[0], end=end) if before else Span(free, end, told), token)
                tries[free] += 1
        self._end = end
        return self._spans


class SpanTable:
    """The rows of `lookup_positions` for a lookup and a topic partition; it waits while ClickHouse is away."""

    def __init__(
        self, settings: Settings, database: str, lookup: Lookup, events_topic: str, topic_partition: int
    ) -> None:
        self._settings = settings
        self._database = database
        self._lookup = lookup
        self._place = (events_topic, topic_partition)
        self._client: Client | None = None

    def spans(self, start: int, end: int, since: int) -> list[Span]:
        """Reads them."""
        return self._ask(lambda client: recorded(client, self._lookup, *self._place, start, end, since))

    def claim(self, span: Span, token: str) -> None:
        """Writes one row."""
        events_topic, topic_partition = self._place
        entries = [{"key": number, "value": at} for number, at in sorted(span.positions.items())]
        row = pl.DataFrame(
            {"start_offset": [span.start], "end_offset": [span.end], "positions": [entries]},
            schema_overrides={"positions": pl.List(pl.Struct({"key": pl.Int32(), "value": pl.Int64()}))},
        ).with_columns(
            lookup=pl.lit(self._lookup.name),
            topic=pl.lit(self._lookup.topic),
            events_topic=pl.lit(events_topic),
            topic_partition=pl.lit(topic_partition, pl.Int32),
        )
        if span.opened_at is not None:
            row = row.with_columns(written_at=pl.lit(span.opened_at).cast(pl.Datetime("us", "UTC")))
        whole = f"{POSITIONS}:{self._lookup.name}/{self._lookup.topic}/{events_topic}/{topic_partition}/{token}"
        self._ask(lambda client: insert_frame(client, quote(POSITIONS), row, whole))

    def _ask(self, question: Callable[[Client], T]) -> T:
        while True:
            try:
                if self._client is None:
                    self._client = connect(self._settings, self._database)
                return question(self._client)
            except (ClickHouseError, ClickHouseUnavailableError, OSError) as error:
                logger.warning("cannot settle what was known of lookup `%s`: %s; waiting", self._lookup.name, error)
                self._client = None
                time.sleep(_RETRY_S)


def _reach(spans: list[Span], start: int) -> int:
    return Known.of((0, span.start, span.end, span.positions) for span in spans).reach(0, start)
