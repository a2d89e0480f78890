"""The plan of a batch run: which offsets of the log its days need, and when a day must be refused.

An event is at most `FURTHEST_AHEAD_MS` ahead of its record's timestamp, so every event of a day lies at or after the
first record sent that long before the day began, if timestamps grow along the log. Copies have the same event time,
hence the same day: the slices of a day need nothing older. Sessions and alerts reach back from the day, as far as
`lookback_ms` says. The last event of a day was sent no later after its end than the day's events were late, as the
index of the log says. That is where a run would read; the index then says whether anything of its days lies outside,
and the range is widened by what does. The `dedup_horizon` offsets before it are read too, to be remembered only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

from batch_layer.archive import ArchivedStretch
from batch_layer.refusals import ExpiredError, LostError, OpenDayError
from metrics.catalog import Catalog
from metrics.disposition import LEDGER_BLOCK
from metrics.event import FURTHEST_AHEAD_MS
from metrics.window import DAY_MS, Window, format_duration, from_epoch_ms, milliseconds, to_epoch_ms


@dataclass(frozen=True)
class LogPartition:
    """One topic partition as a run found it.

    Attributes:
        topic_partition: Its number.
        begin: The first offset that the log still has, or the archive.
        end: The end of what is committed, exclusive.
        first_time: Timestamp of the first record there (ms), None where there is none.
        start: The first offset whose record may hold an event that the days asked for need; `end` where there is none.
        archived: What is read from the archive: stretches that reach up to what the log still has, or beyond.
        log_begin: Where the log itself begins; None: at `begin`.
    """

    topic_partition: int
    begin: int
    end: int
    first_time: int | None
    start: int
    archived: tuple[ArchivedStretch, ...] = ()
    log_begin: int | None = None

    @property
    def in_log_from(self) -> int:
        """Where the log itself begins."""
        return self.begin if self.log_begin is None else self.log_begin


@dataclass(frozen=True)
class LogState:
    """A topic as a run found it.

    Attributes:
        partitions: Its partitions.
        greatest_time: The greatest record timestamp (ms), None in an empty log.
        observed_at: The wall clock (ms) then. A record's timestamp says when it was sent, so a record that is sent from
            then on is late for every day whose lateness was over by then, although an idle log does not show it.
        topic_id: Of the topic: one that was made anew under its name has another.
        compacted: Whether the broker may drop records of the topic that are not old.
    """

    partitions: tuple[LogPartition, ...]
    greatest_time: int | None
    observed_at: int = 0
    topic_id: str = ""
    compacted: bool = False


@dataclass(frozen=True)
class ReadRange:
    """Offsets of one topic partition: ``[remember_from, start)`` are remembered, ``[start, end)`` are read.

    `log_begin` and `log_end` are those of the log then; what lies before it is read from the archive, which begins at
    `begin`.
    """

    topic_partition: int
    remember_from: int
    start: int
    end: int
    log_begin: int
    log_end: int
    begin: int


@dataclass(frozen=True)
class Indexed:
    """What the index of the log counts of a day: well-formed events that happened in it, dead letters sent in it."""

    events: int
    dead_letters: int


@dataclass(frozen=True)
class Plan:
    """What a run reads for its days.

    Attributes:
        days: Ascending, each once.
        ranges: By topic partition, each once.
        last_closed: Days up to it will not change; None where that cannot be said of any.
        topic_id: Of the topic that was planned for.
        indexed: By day, what the run must find.
        archived: By topic partition, what is read from the archive.
        lookups_until: By lookup and topic partition, the offset before which versions count; None: all do.
    """

    days: tuple[date, ...]
    ranges: tuple[ReadRange, ...]
    last_closed: date | None
    topic_id: str = ""
    indexed: Mapping[date, Indexed] = field(default_factory=dict)
    archived: Mapping[int, tuple[ArchivedStretch, ...]] = field(default_factory=dict)
    lookups_until: Mapping[str, Mapping[int, int]] | None = None

    @property
    def records(self) -> int:
        """Offsets to be read or remembered: at least as many as records."""
        return sum(r.end - r.remember_from for r in self.ranges)

    def lines(self, catalog: Catalog) -> list[str]:
        """The plan in words, a line per fact."""
        metrics = ", ".join(metric.name for metric in catalog.metrics)
        return [
            f"days: {', '.join(map(str, self.days))}",
            f"metrics: {metrics} (catalog version {catalog.version})",
            *(
                f"{catalog.topic}[{r.topic_partition}]: read offsets {r.start} to {r.end} (end exclusive), "
                f"remember from {r.remember_from}; the log has {r.log_begin} to {r.log_end}"
                + (f", the archive goes back to {r.begin}" if r.begin < r.log_begin else "")
                for r in self.ranges
            ),
        ]


def lookback_ms(catalog: Catalog) -> int:
    """How long before a day events must be known, in ms: 0 without sessions and alerts.

    A session that ends in the day began at most its greatest length and a gap before; as much again holds the events
    without a gap that decide where it began.
    """
    sessions = [metric.session for metric in catalog.metrics if metric.session]
    alerts = [milliseconds(alert.within) for alert in catalog.alerts if alert.within]
    return max([0, *(2 * window.max_length_ms + window.gap_ms for window in sessions), *alerts])


def earliest_record_time(catalog: Catalog, days: Sequence[date]) -> int:
    """The timestamp (ms) before which no record can hold an event that these days need."""
    return earliest_event_time(catalog, days) - FURTHEST_AHEAD_MS


def earliest_event_time(catalog: Catalog, days: Sequence[date]) -> int:
    """The event time (ms) before which no event matters to these days."""
    return _day_start(min(days)) - lookback_ms(catalog)


def plan(catalog: Catalog, days: Sequence[date], log: LogState, *, allow_open: bool = False) -> Plan:
    """The offsets that the days need; `allow_open` accepts days that are not over.

    Raises:
        ExpiredError: Records that may belong to one of the days are no longer in the log.
        LostError: The topic is compacted.
        OpenDayError: The watermark has not passed the end of a day and the lateness.
        ValueError: No day is asked for.
    """
    if not days:
        msg = "a batch run has at least one day; got none. name a first and a last day"
        raise ValueError(msg)
    ordered = tuple(sorted(set(days)))
    if log.compacted:
        msg = (
            f"topic `{catalog.topic}` must keep every record, and its `cleanup.policy` is compact: what it has dropped "
            "cannot be counted. set it to delete, and produce again what is missing"
        )
        raise LostError(msg)
    _refuse_expired(catalog, ordered, log)
    if not allow_open:
        _refuse_open(catalog, ordered, log)
    return Plan(
        ordered,
        tuple(
            ReadRange(
                topic_partition=p.topic_partition,
                remember_from=max(p.begin, p.start - catalog.dedup_horizon),
                start=p.start,
                end=p.end,
                log_begin=p.in_log_from,
                log_end=p.end,
                begin=p.begin,
            )
            for p in log.partitions
        ),
        closed_until(catalog, log),
        log.topic_id,
        archived={p.topic_partition: p.archived for p in log.partitions if p.archived},
    )


def fitted(
    planned: Plan,
    catalog: Catalog,
    stops: Mapping[int, int],
    extents: Mapping[int, tuple[int, int]],
    indexed: Mapping[date, Indexed],
) -> Plan:
    """The plan with ranges that end where their days do, widened by all that the index finds outside of them.

    Args:
        planned: From `plan`.
        catalog: Of the source.
        stops: By topic partition, the offset from which on no record should hold anything of the days.
        extents: By topic partition, the offsets ``[start, end)`` of the blocks that hold something of the days.
        indexed: By day, what there is of it.

    Raises:
        LostError: The log lacks offsets that held something of the days.
    """
    ranges = []
    for each in planned.ranges:
        start, end = each.start, max(each.start, min(each.end, stops[each.topic_partition]))
        if each.topic_partition in extents:
            first, last = extents[each.topic_partition]
            # of a block that has expired in part, what is left may be all there was: the counts will tell
            if (first // LEDGER_BLOCK + 1) * LEDGER_BLOCK <= each.begin or last > each.log_end:
                raise _lost(catalog, planned.days, each, first, last)
            start, end = max(each.begin, min(start, first)), max(end, last)
        remember_from = max(each.begin, start - catalog.dedup_horizon)
        ranges.append(replace(each, remember_from=remember_from, start=start, end=end))
    return replace(planned, ranges=tuple(ranges), indexed=indexed)


def _lost(catalog: Catalog, days: tuple[date, ...], read: ReadRange, first: int, last: int) -> LostError:
    return LostError(
        f"topic `{catalog.topic}`, partition {read.topic_partition} held something of {_days(days)} at offsets {first} "
        f"to {last}, and now has {read.begin} to {read.log_end} only. restore it, or choose other days"
    )


def _days(days: tuple[date, ...]) -> str:
    return f"day {days[0]}" if len(days) == 1 else f"days {days[0]} to {days[-1]}"


def _refuse_expired(catalog: Catalog, days: tuple[date, ...], log: LogState) -> None:
    needed = earliest_record_time(catalog, days)
    expired = [p for p in log.partitions if p.begin > 0 and (p.first_time is None or p.first_time >= needed)]
    if not expired:
        return
    way_out = "lengthen the topic's retention before more is lost"
    if log.greatest_time is None or any(p.first_time is None for p in expired):
        reach = "it holds no record any more in " + ", ".join(str(p.topic_partition) for p in expired)
    else:
        reaches_from = max(p.first_time for p in expired if p.first_time is not None)
        first = _first_whole_day(reaches_from + lookback_ms(catalog))
        reach = f"it reaches from {instant(reaches_from)} to {instant(log.greatest_time)}"
        closed = closed_until(catalog, log)
        last = min(from_epoch_ms(log.greatest_time).date(), closed) if closed else None
        if last is not None and first <= last:
            way_out = f"choose days from {first} to {last}, or {way_out}"
    listed = ", ".join(f"partition {p.topic_partition} begins at offset {p.begin}" for p in expired)
    msg = (
        f"offsets that day {days[0]} needs have expired from topic `{catalog.topic}`: a run needs every record from "
        f"{instant(needed)} on, but the log no longer has them; {reach} ({listed}). {way_out}"
    )
    raise ExpiredError(msg)


def _refuse_open(catalog: Catalog, days: tuple[date, ...], log: LogState) -> None:
    last = closed_until(catalog, log)
    if log.greatest_time is None or last is None:
        msg = (
            f"day {days[0]} is not closed: topic `{catalog.topic}` is empty, so nothing shows that it is over. "
            "send events, or choose another catalog with --catalog"
        )
        raise OpenDayError(msg)
    if days[-1] <= last:
        return
    first_open = next(day for day in days if day > last)
    end = Window.of_day(first_open).end
    msg = (
        f"day {first_open} is not closed: the watermark must have passed {instant(to_epoch_ms(end))} and the lateness "
        f"of {format_duration(catalog.allowed_lateness)}; the log of topic `{catalog.topic}` reaches to "
        f"{instant(log.greatest_time)}, less `out_of_orderness` of {format_duration(catalog.out_of_orderness)}. "
        f"choose days up to {last}, wait, or accept values that will change with --allow-open"
    )
    raise OpenDayError(msg)


def closed_until(catalog: Catalog, log: LogState) -> date | None:
    """The last day to which nothing that is not late can be added; None for an empty log, which proves nothing."""
    if log.greatest_time is None:
        return None
    closed = max(log.greatest_time, log.observed_at) - milliseconds(catalog.out_of_orderness + catalog.allowed_lateness)
    return from_epoch_ms(closed // DAY_MS * DAY_MS).date() - timedelta(days=1)


def _first_whole_day(reaches_from: int) -> date:
    """The first day of which no event can have been sent before this timestamp."""
    return from_epoch_ms(-(-(reaches_from + FURTHEST_AHEAD_MS + 1) // DAY_MS) * DAY_MS).date()


def _day_start(day: date) -> int:
    return to_epoch_ms(Window.of_day(day).start)


def instant(moment: int) -> str:
    """A moment in ms as people write it."""
    text = datetime.fromtimestamp(moment / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z").replace(".000Z", "Z")
