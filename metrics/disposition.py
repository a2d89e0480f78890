"""Dispositions: what becomes of every offset of the log, as a pure function of the log.

dead_letter: no event (see `metrics.event`). duplicate: the nearest earlier event of its topic partition with the same
id lies at most `dedup_horizon` offsets before it and has the same event time. id_conflict: the same, but another event
time. late: sent more than `out_of_orderness` + `allowed_lateness` after it happened. counted: all others. The first
that applies holds. Neither the wall clock, the watermark, the chunk nor the attempt decides anything, so a reader may
start anywhere once it has remembered the horizon before that place.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from metrics.catalog import Catalog
from metrics.event import Decoded, Decoder, Unframe
from metrics.lookup import Join
from metrics.window import milliseconds

COUNTED, LATE, DUPLICATE, ID_CONFLICT, DEAD_LETTER = "counted", "late", "duplicate", "id_conflict", "dead_letter"
DISPOSITIONS = (COUNTED, LATE, DUPLICATE, ID_CONFLICT, DEAD_LETTER)
LEDGER_BLOCK = 10_000
"""Offsets in one block of the ledger."""


@dataclass(frozen=True)
class Chunk:
    """A run of records of one topic partition, every one with its disposition.

    Attributes:
        events: What `Decoded.events` holds, and `disposition`; joined with the lookups of the catalog.
        dead_letters: What `Decoded.dead_letters` holds.
    """

    events: pl.DataFrame
    dead_letters: pl.DataFrame

    @property
    def counted(self) -> pl.DataFrame:
        """The events that the speed layer folds."""
        return self.events.filter(pl.col("disposition") == COUNTED)

    @property
    def late(self) -> pl.DataFrame:
        """The events that came too late for the speed layer."""
        return self.events.filter(pl.col("disposition") == LATE)

    @property
    def exceptions(self) -> pl.DataFrame:
        """A row per record not counted: place, record_time, event_id, event_time, disposition and reason."""
        named = ["topic_partition", "offset", "record_time", "event_id", "event_time", "disposition"]
        events = self.events.filter(pl.col("disposition") != COUNTED).select(*named, reason=pl.col("disposition"))
        dead = self.dead_letters.select(
            "topic_partition",
            "offset",
            "record_time",
            event_id=pl.lit(None, pl.String),
            event_time=pl.lit(None, pl.Int64),
            disposition=pl.lit(DEAD_LETTER),
            reason="reason",
        )
        return pl.concat([events, dead]).sort("offset")

    @property
    def ledger(self) -> pl.DataFrame:
        """A row per block of offsets: topic_partition, block, records and a count per disposition."""
        both = pl.concat(
            [
                self.events.select("topic_partition", "offset", "disposition"),
                self.dead_letters.select("topic_partition", "offset", disposition=pl.lit(DEAD_LETTER)),
            ]
        )
        return (
            both.group_by("topic_partition", block=pl.col("offset") // LEDGER_BLOCK)
            .agg(
                records=pl.len().cast(pl.UInt64),
                **{name: (pl.col("disposition") == name).sum().cast(pl.UInt64) for name in DISPOSITIONS},
            )
            .sort("block")
        )


class Generation:
    """Events of a run of offsets, found by their id.

    Attributes:
        places: By event id, the place of its latest event in the columns.
        offsets: Of the events, in order.
        times: Their event times, in ms.
    """

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.offsets = array("q")
        self.times = array("q")

    def add(self, ids: list[str], events: pl.DataFrame) -> int:
        """Adds events; returns how many ids it did not know before."""
        known, first = len(self.places), len(self.offsets)
        self.places.update(zip(ids, range(first, first + len(ids)), strict=True))
        self.offsets.frombytes(events["offset"].to_numpy().tobytes())
        self.times.frombytes(events["event_time"].to_numpy().tobytes())
        return len(self.places) - known

    def at(self, event_id: str) -> tuple[int, int]:
        """Event time and offset of the latest event of an id."""
        place = self.places[event_id]
        return self.times[place], self.offsets[place]


class PartitionReader:
    """Decodes and disposes of the records of one topic partition, which it must be given in offset order.

    It remembers the ids of the last `dedup_horizon` offsets, and of at most twice as many and two chunks.

    Args:
        catalog: Of the source.
        unframe: How records are read whose format is not JSON; see `metrics.event.Unframe`.
        join: Gives events the fields of the catalog's lookups.

    Raises:
        ValueError: The catalog has lookups, and there is no `join`, or the other way round.
    """

    def __init__(self, catalog: Catalog, unframe: Unframe | None = None, join: Join | None = None) -> None:
        if (join is None) != (not catalog.lookups):
            msg = f"`join` serves a catalog's lookups; got {join} for {len(catalog.lookups)} of them. pass what fits"
            raise ValueError(msg)
        self._join = join
        self._decoder = Decoder(catalog, unframe)
        self._horizon = catalog.dedup_horizon
        self._too_late_ms = milliseconds(catalog.out_of_orderness + catalog.allowed_lateness)
        self._generations: list[Generation] = []

    @property
    def remembered(self) -> int:
        """How many ids it knows."""
        return sum(len(each.places) for each in self._generations)

    def remember(
        self,
        topic_partition: int,
        offsets: Sequence[int],
        record_times: Sequence[int],
        values: Sequence[bytes | None],
    ) -> None:
        """Takes note of the ids of records before the first that is read."""
        self._repeats(self._decoder.decode(topic_partition, offsets, record_times, values))

    def read(
        self,
        topic_partition: int,
        offsets: Sequence[int],
        record_times: Sequence[int],
        values: Sequence[bytes | None],
    ) -> Chunk:
        """Decodes the next records and gives each its disposition; times in milliseconds since the epoch."""
        decoded = self._decoder.decode(topic_partition, offsets, record_times, values)
        repeats = self._repeats(decoded)
        late = pl.col("record_time") - pl.col("event_time") > self._too_late_ms
        events = decoded.events.with_columns(
            disposition=pl.when(repeats.is_not_null())
            .then(repeats)
            .when(late)
            .then(pl.lit(LATE))
            .otherwise(pl.lit(COUNTED))
        )
        return Chunk(events if self._join is None else self._join(events), decoded.dead_letters)

    def _repeats(self, decoded: Decoded) -> pl.Series:
        """For each event duplicate, id_conflict or null, and remembers the event."""
        events, ids = decoded.events, decoded.event_ids
        kinds = pl.repeat(None, len(ids), dtype=pl.String, eager=True)
        if not ids:
            return kinds
        young = self._youngest(events["offset"][0])
        known = [each.places.keys() & ids for each in self._generations]
        nearest = {
            event_id: each.at(event_id)
            for each, found in zip(self._generations, known, strict=True)
            for event_id in found
        }
        again = set(nearest)
        if young.add(ids, events) < len(ids) - len(known[-1]):
            again |= {event_id for event_id, times in Counter(ids).items() if times > 1}
        if again:
            numbers = [number for number, event_id in enumerate(ids) if event_id in again]
            chosen = events[numbers]
            times, offsets = chosen["event_time"].to_list(), chosen["offset"].to_list()
            kinds = kinds.scatter(numbers, self._compare([ids[n] for n in numbers], times, offsets, nearest))
        return kinds

    def _compare(
        self, ids: list[str], times: list[int], offsets: list[int], nearest: dict[str, tuple[int, int]]
    ) -> list[str | None]:
        """What some events are, each by the nearest earlier one of its id; `nearest` has those before the first."""
        kinds: list[str | None] = []
        for event_id, event_time, offset in zip(ids, times, offsets, strict=True):
            earlier = nearest.get(event_id)
            if earlier is None or offset - earlier[1] > self._horizon:
                kinds.append(None)
            else:
                kinds.append(DUPLICATE if earlier[0] == event_time else ID_CONFLICT)
            nearest[event_id] = (event_time, offset)
        return kinds

    def _youngest(self, first: int) -> Generation:
        """The generation to add events to, from offset `first` on; it and the one before hold the horizon of each."""
        if not self._generations or first - self._generations[-1].offsets[0] > self._horizon:
            self._generations = [*self._generations[-1:], Generation()]
        return self._generations[-1]
