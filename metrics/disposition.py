"""Dispositions: what becomes of every offset of the log, as a pure function of the log.

dead_letter: no event (see `metrics.event`). duplicate: the nearest earlier event of its topic partition with the same
id lies at most `dedup_horizon` offsets before it and has the same event time. id_conflict: the same, but another event
time. late: sent more than `out_of_orderness` + `allowed_lateness` after it happened. counted: all others. The first
that applies holds. Neither the wall clock, the watermark, the chunk nor the attempt decides anything, so a reader may
start anywhere once it has remembered the horizon before that place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from metrics.catalog import Catalog
from metrics.event import Decoder, Unframe
from metrics.lookup import Join
from metrics.window import milliseconds

COUNTED, LATE, DUPLICATE, ID_CONFLICT, DEAD_LETTER = "counted", "late", "duplicate", "id_conflict", "dead_letter"
DISPOSITIONS = (COUNTED, LATE, DUPLICATE, ID_CONFLICT, DEAD_LETTER)
LEDGER_BLOCK = 10_000
"""Offsets in one block of the ledger."""

_PRUNE_AT = 1.25


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


class PartitionReader:
    """Decodes and disposes of the records of one topic partition, which it must be given in offset order.

    It remembers the ids of the last `dedup_horizon` offsets, no more.

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
        self._seen: dict[str, tuple[int, int]] = {}

    def remember(
        self,
        topic_partition: int,
        offsets: Sequence[int],
        record_times: Sequence[int],
        values: Sequence[bytes | None],
    ) -> None:
        """Takes note of the ids of records before the first that is read."""
        self._repeats(self._decoder.decode(topic_partition, offsets, record_times, values).events)

    def read(
        self,
        topic_partition: int,
        offsets: Sequence[int],
        record_times: Sequence[int],
        values: Sequence[bytes | None],
    ) -> Chunk:
        """Decodes the next records and gives each its disposition; times in milliseconds since the epoch."""
        decoded = self._decoder.decode(topic_partition, offsets, record_times, values)
        repeats = self._repeats(decoded.events)
        late = pl.col("record_time") - pl.col("event_time") > self._too_late_ms
        events = decoded.events.with_columns(
            disposition=pl.when(repeats.is_not_null())
            .then(repeats)
            .when(late)
            .then(pl.lit(LATE))
            .otherwise(pl.lit(COUNTED))
        )
        return Chunk(events if self._join is None else self._join(events), decoded.dead_letters)

    def _repeats(self, events: pl.DataFrame) -> pl.Series:
        """For each event duplicate, id_conflict or null, and remembers the event."""
        ids, times, offsets = (events[name].to_list() for name in ("event_id", "event_time", "offset"))
        seen = self._seen
        repeats: pl.Series
        if seen.keys().isdisjoint(ids) and len(set(ids)) == len(ids):
            seen.update(zip(ids, zip(times, offsets, strict=True), strict=True))
            repeats = pl.repeat(None, len(ids), dtype=pl.String, eager=True)
        else:
            kinds: list[str | None] = []
            for event_id, event_time, offset in zip(ids, times, offsets, strict=True):
                earlier = seen.get(event_id)
                if earlier is None or offset - earlier[1] > self._horizon:
                    kinds.append(None)
                else:
                    kinds.append(DUPLICATE if earlier[0] == event_time else ID_CONFLICT)
                seen[event_id] = (event_time, offset)
            repeats = pl.Series(kinds, dtype=pl.String)
        if offsets and len(seen) > self._horizon * _PRUNE_AT:
            oldest = offsets[-1] - self._horizon
            self._seen = {event_id: entry for event_id, entry in seen.items() if entry[1] >= oldest}
        return repeats
