"""What reaches the log: a source's events with known numbers of late, repeated, out-of-order and bad ones among them.

Pure: a plan, a seed and a clock reading give the same records, in the order and with the times in which they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum

import msgspec
import numpy as np

from orchestration.happenings import DAY_MS, Flags, Happenings, Ints, Records, World, joined

SPAN_RECORDS = 250_000  # made at once, so that memory is bounded whatever the number of events
FUTURE_MS = DAY_MS  # a clock that runs a day ahead
PAYLOAD_BYTES = 1_000_000
_LONGEST_EXTRA_MS = 6 * 3_600_000  # how much later than the limit a late event can be
_MINUTE_MS = 60_000


class TrafficError(ValueError):
    """The events asked for cannot be made."""


class Kind(IntEnum):
    """What was done to a record on its way to the log."""

    NORMAL = 0
    OUT_OF_ORDER = 1
    LATE = 2
    DUPLICATE = 3
    ID_CONFLICT = 4
    NOT_JSON = 5
    MISSING_FIELD = 6
    WRONG_TYPE = 7
    EVENT_TIME_IN_FUTURE = 8
    TOO_LARGE = 9


BAD_KINDS = (Kind.NOT_JSON, Kind.MISSING_FIELD, Kind.WRONG_TYPE, Kind.EVENT_TIME_IN_FUTURE)


@dataclass(frozen=True)
class Disturbances:
    """How many records of each kind there are; the others are normal.

    Attributes:
        late: sent later than `out_of_orderness` + `allowed_lateness` after they happened.
        duplicates: sent again, unchanged, shortly after the original.
        out_of_order: sent after later ones, within the lateness: counted like any other.
        bad: not JSON, without a field, of a wrong type or from the future; a quarter each.
        oversized: with 1 MB of payload.
        id_conflicts: a new event under an id that was used shortly before.
    """

    late: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    bad: int = 0
    oversized: int = 0
    id_conflicts: int = 0

    @property
    def total(self) -> int:
        """Number of records that are not normal."""
        return self.late + self.duplicates + self.out_of_order + self.bad + self.oversized + self.id_conflicts


@dataclass(frozen=True)
class Limits:
    """What the catalog allows, in milliseconds and offsets."""

    out_of_orderness: int
    allowed_lateness: int
    dedup_horizon: int

    @property
    def late_after(self) -> int:
        """A record whose timestamp is more than this after its event time is late."""
        return self.out_of_orderness + self.allowed_lateness


@dataclass(frozen=True)
class Span:
    """Records sent within [start, end), milliseconds since the epoch; evenly spaced where `even`."""

    start: int
    end: int
    records: int
    even: bool = False


@dataclass
class Traffic:
    """Makes the records of one span after another.

    Attributes:
        seed: the same seed, limits and spans give the same records.
        limits: the catalog's.
        floor: no event time lies before this, milliseconds since the epoch.
        make_world: makes the source of the events; draws from the same numbers.
    """

    seed: int
    limits: Limits
    floor: int
    make_world: Callable[[np.random.Generator], World]
    _made: int = field(default=0, init=False)
    _bad: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.world = self.make_world(self._rng)

    def records(self, span: Span, disturbances: Disturbances, late_floor: int | None = None) -> Records:
        """The records of a span, exactly as many of each kind as asked for.

        Args:
            span: when, and how many records in all.
            disturbances: how many of them are not normal.
            late_floor: no late or out-of-order event happened before this; default: the traffic's floor.

        Raises:
            TrafficError: more are asked for than there is room for.
        """
        rng = self._rng
        again = disturbances.duplicates + disturbances.id_conflicts
        found = self.world.happenings(rng, span.start, span.end, span.records - again)
        if span.even:
            found = _evenly(found, span)
        floor = self.floor if late_floor is None else late_floor
        at, free = found.at, ~found.kept
        kind = np.full(len(at), Kind.NORMAL, dtype=np.int64)
        _mark(rng, kind, free & (at - floor > self.limits.late_after + _MINUTE_MS), Kind.LATE, disturbances.late)
        shortest, longest = self.limits.out_of_orderness + 1, self.limits.late_after
        _mark(rng, kind, free & (at - floor > shortest), Kind.OUT_OF_ORDER, disturbances.out_of_order)
        turns = (self._bad + np.arange(disturbances.bad)) % len(BAD_KINDS)
        self._bad += disturbances.bad
        for bad, share in zip(BAD_KINDS, np.bincount(turns, minlength=len(BAD_KINDS)).tolist(), strict=True):
            _mark(rng, kind, free, bad, share)
        _mark(rng, kind, free, Kind.TOO_LARGE, disturbances.oversized)

        delay = (rng.random(len(at)) * min(500, self.limits.out_of_orderness // 4)).astype(np.int64)
        room = at - floor
        delayed = kind == Kind.OUT_OF_ORDER
        delay[delayed] = _between(rng, shortest, np.minimum(longest, room[delayed]))
        late = kind == Kind.LATE
        latest = np.minimum(self.limits.late_after + _LONGEST_EXTRA_MS, room[late])
        delay[late] = _between(rng, self.limits.late_after + 1, latest)
        delay[kind == Kind.EVENT_TIME_IN_FUTURE] = -FUTURE_MS
        event_time = np.maximum(at - delay, self.floor)
        number = self._made + np.arange(len(at))
        self._made += len(at)
        return self._repeated(Records(at, event_time, kind, number, found.columns), disturbances, span)

    def _repeated(self, made: Records, disturbances: Disturbances, span: Span) -> Records:
        """Some records a second time: as they were, or as another event under the same id."""
        again = disturbances.duplicates + disturbances.id_conflicts
        if again == 0:
            return made
        normal = np.flatnonzero(made.kind == Kind.NORMAL)
        if len(normal) < again:
            message = f"{again} events are to be sent twice; got {len(normal)} normal ones. ask for more events"
            raise TrafficError(message)
        originals = self._rng.choice(normal, size=again, replace=False)
        copy = made.rows(originals)
        pause = self._rng.integers(0, max(1, min(20_000, self.limits.late_after // 4)), size=again)
        # Records this far apart in the whole topic are nearer still in their partition.
        last_known = made.at[np.minimum(originals + self.limits.dedup_horizon // 2, len(made) - 1)]
        at = np.maximum(copy.at, np.minimum(np.minimum(copy.at + pause, last_known), span.end - 1))
        kind = np.full(again, Kind.DUPLICATE, dtype=np.int64)
        kind[disturbances.duplicates :] = Kind.ID_CONFLICT
        event_time = np.where(kind == Kind.ID_CONFLICT, at, copy.event_time)
        event_time = np.where((kind == Kind.ID_CONFLICT) & (at == copy.event_time), at + 1, event_time)
        copy = replace(copy, at=at, kind=kind, event_time=event_time)
        both = Records(
            at=np.concatenate([made.at, copy.at]),
            event_time=np.concatenate([made.event_time, copy.event_time]),
            kind=np.concatenate([made.kind, copy.kind]),
            number=np.concatenate([made.number, copy.number]),
            columns=joined([made.columns, copy.columns]),
        )
        return both.rows(np.argsort(both.at, kind="stable"))


def event_id(run: str, number: int) -> str:
    """The id of an event by the run and its number."""
    return f"{run}-{number:08x}"


def messages(records: Records, run: str, world: World) -> Iterator[tuple[bytes, bytes, int]]:
    """Key, value and record timestamp (milliseconds) of each record, in order."""
    encoder = msgspec.json.Encoder()
    ids = (event_id(run, number) for number in records.number.tolist())
    rows = zip(world.events(records, ids), records.at.tolist(), records.kind.tolist(), strict=True)
    for (key, event), at, kind in rows:
        value = encoder.encode(event)
        if kind in _SPOIL:
            value = _SPOIL[kind](value, world)
        yield key, value, at


def _cut(value: bytes, _: World) -> bytes:
    return value[: len(value) // 2]


def _without_time(value: bytes, _: World) -> bytes:
    fields = msgspec.json.decode(value)
    del fields["ts"]
    return msgspec.json.encode(fields)


def _wrong_type(value: bytes, world: World) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(value), **world.wrong})


def _padded(value: bytes, _: World) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(value), "payload": "x" * PAYLOAD_BYTES})


_SPOIL = {
    Kind.NOT_JSON: _cut,
    Kind.MISSING_FIELD: _without_time,
    Kind.WRONG_TYPE: _wrong_type,
    Kind.TOO_LARGE: _padded,
}


def _mark(rng: np.random.Generator, kind: Ints, possible: Flags, mark: Kind, count: int) -> None:
    """Turn `count` of the normal records at possible positions into records of another kind."""
    if count == 0:
        return
    candidates = np.flatnonzero(possible & (kind == Kind.NORMAL))
    if len(candidates) < count:
        message = (
            f"{count} `{mark.name.lower()}` events are asked for; got room for {len(candidates)}. "
            "ask for more events, or fewer of that kind"
        )
        raise TrafficError(message)
    kind[rng.choice(candidates, size=count, replace=False)] = mark


def _between(rng: np.random.Generator, low: int, high: Ints) -> Ints:
    """A number for each of `high`, in [low, high]."""
    return (low + np.floor(rng.random(len(high)) * (high - low + 1))).astype(np.int64)


def _evenly(found: Happenings, span: Span) -> Happenings:
    count = len(found.at)
    return replace(found, at=span.start + np.arange(count) * (span.end - span.start) // max(count, 1))
