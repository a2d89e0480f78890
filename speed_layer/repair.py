"""Dead letters produced again after a fix, each once: the log itself tells which were.

A repaired letter is a new record in the topic partition of its origin, with the origin's key and its place in the
headers. Its timestamp is the time of the repair, for only then was an event sent: so what comes within the lateness is
counted live, and what comes later is late, in either layer. With the timestamp of its origin it had to be counted live
however long ago that is, by a speed layer that has let go of the slice's state.

An origin is repaired once a record behind it names it and is an event by the catalog. A command that is repeated, or
was killed, finds such records by reading the log from the first chosen letter on. Of two commands at once the second
produces a duplicate, by the event's own id and time.
"""

import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date

from infra import kafka
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.event import DeadLetterError, Decoder
from metrics.origin import ORIGIN_PREFIX
from metrics.window import from_epoch_ms
from speed_layer.dead_letters import Headers, Letter, Place, messages, place_in
from speed_layer.side_outputs import LARGEST_BYTES

FILTER_WITHIN_S = 30.0
_SHOWN = 300

Mended = bytes | None | DeadLetterError
"""A value after a fix, or why there is none."""

Mend = Callable[[Sequence[bytes | None]], Sequence[Mended]]


@dataclass(frozen=True)
class Record:
    """What stands at a place of the log."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(frozen=True)
class Copy:
    """A record that names an origin."""

    origin: Place
    offset: int
    time: int
    value: bytes | None


@dataclass
class Seen:
    """What was found in the log.

    Attributes:
        ends: By topic partition, the offset before which everything was looked at.
        records: Those at places that were asked for, as far as the log still has them.
        copies: In the order of the log.
    """

    ends: dict[int, int]
    records: dict[Place, Record] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)

    def repaired(self, decoder: Decoder) -> dict[Place, int]:
        """Origin to the offset of the first copy that is an event."""
        _, dead = _judged(decoder, [copy.value for copy in self.copies], [copy.time for copy in self.copies])
        found: dict[Place, int] = {}
        for number, copy in enumerate(self.copies):
            if number not in dead:
                found.setdefault(copy.origin, copy.offset)
        return found


@dataclass(frozen=True)
class Repair:
    """A dead letter to be produced again.

    Attributes:
        origin: Where it first stood.
        letter: What it was.
        record: What is produced.
        event_time: In ms.
    """

    origin: Place
    letter: Letter
    record: Record
    event_time: int


@dataclass(frozen=True)
class Refusal:
    """A dead letter that is not produced again: where it stands, why it was one, and why it still is."""

    place: Place
    was: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Plan:
    """What a repair would do.

    Attributes:
        at: The timestamp of what is produced, in ms.
        ends: By topic partition, up to where the log was read.
        repairs: To be produced, by origin.
        before: Repaired before, with the offset of the copy.
        refused: The others.
    """

    at: int
    ends: Mapping[int, int]
    repairs: tuple[Repair, ...]
    before: tuple[tuple[Letter, int], ...]
    refused: tuple[Refusal, ...]

    @property
    def days(self) -> list[date]:
        """The UTC days that a batch run has to compute again: of the events, and of their origins' exceptions."""
        times = {time for one in self.repairs for time in (one.event_time, one.letter.record_time)}
        return sorted({from_epoch_ms(time).date() for time in times})


def look(settings: Settings, catalog: Catalog, starts: Mapping[int, int], wanted: Collection[Place] = ()) -> Seen:
    """Reads the log from `starts` on (by topic partition) for copies, and for what stands at some places.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: No broker answered in time.
    """
    offsets = kafka.log_offsets(settings, catalog.topic)
    seen = Seen({number: end for number, (_, end) in offsets.items()})
    held = {number: max(start, offsets[number][0]) for number, start in starts.items() if number in offsets}
    for message in messages(settings, catalog.topic, held, seen.ends):
        headers: Headers = message.headers() or ()
        place = Place(message.partition(), message.offset())
        if place in wanted:
            seen.records[place] = Record(message.key(), message.value(), headers)
        origin = place_in(headers, catalog.topic, ORIGIN_PREFIX) if headers else None
        if origin is not None and origin.topic_partition == place.topic_partition and origin < place:
            seen.copies.append(Copy(origin, place.offset, message.timestamp()[1], message.value()))
    return seen


def plan(catalog: Catalog, decoder: Decoder, letters: Sequence[Letter], seen: Seen, mend: Mend, now_ms: int) -> Plan:
    """What becomes of chosen letters.

    Args:
        catalog: Of the source.
        decoder: Of the catalog.
        letters: By place.
        seen: The log from the first of them on.
        mend: The fix; gives a value for each that it is given.
        now_ms: The timestamp of what is produced.
    """
    repaired = seen.repaired(decoder)
    origins: dict[Place, Letter] = {}
    for letter in letters:  # an origin stands before its copies, which may have become dead letters themselves
        record = seen.records.get(letter.place, Record(None, None))
        origins.setdefault(place_in(record.headers, catalog.topic, ORIGIN_PREFIX) or letter.place, letter)
    refused = [
        Refusal(letter.place, letter.reason, "not_in_the_log", detail)
        for origin, letter in origins.items()
        if origin not in repaired and (detail := _strange(catalog, letter, seen))
    ]
    strange = {refusal.place for refusal in refused}
    waiting = [(o, each) for o, each in origins.items() if o not in repaired and each.place not in strange]
    mended = mend([letter.value for _, letter in waiting])
    values = [None if isinstance(value, DeadLetterError) else value for value in mended]
    times, dead = _judged(decoder, values, [now_ms] * len(values))
    dead |= {number: value for number, value in enumerate(mended) if isinstance(value, DeadLetterError)}
    repairs = []
    for number, (origin, letter) in enumerate(waiting):
        if number in dead:
            refused.append(Refusal(letter.place, letter.reason, dead[number].reason, dead[number].detail))
            continue
        value = values[number]
        assert value is not None
        record = _again(catalog, decoder, origin, value, seen.records.get(letter.place))
        repairs.append(Repair(origin, letter, record, times[number]))
    before = tuple((letter, repaired[origin]) for origin, letter in origins.items() if origin in repaired)
    return Plan(now_ms, seen.ends, tuple(repairs), before, tuple(sorted(refused, key=lambda one: one.place)))


def produce(settings: Settings, catalog: Catalog, decoder: Decoder, planned: Plan) -> int:
    """Produces what was planned, except what somebody else repaired since; returns how many.

    Raises:
        KafkaException: A record was not acknowledged; the others were. The same command again produces the rest.
    """
    starts = {one.origin.topic_partition: planned.ends[one.origin.topic_partition] for one in planned.repairs}
    since = look(settings, catalog, starts).repaired(decoder)
    records = (
        {
            "partition": one.origin.topic_partition,
            "timestamp": planned.at,
            "key": one.record.key,
            "value": one.record.value,
            "headers": list(one.record.headers),
        }
        for one in planned.repairs
        if one.origin not in since
    )
    client = kafka.producer(settings, {"message.max.bytes": LARGEST_BYTES})
    return kafka.produce_all(client, catalog.topic, records)


def unchanged(values: Sequence[bytes | None]) -> Sequence[Mended]:
    """The fix of who has put the catalog, or the schema, right."""
    return values


def by_command(command: str, *, text: bool) -> Mend:
    """The fix by a shell command that has a value on its stdin and gives the right one on its stdout.

    It is run once for each value, so that any bytes will do and a failure is of one value alone.

    Args:
        command: For the shell.
        text: Whether a line break at the end is the command's and not the value's.
    """

    def run(value: bytes | None) -> Mended:
        try:
            done = subprocess.run(
                command, shell=True, input=value or b"", capture_output=True, timeout=FILTER_WITHIN_S, check=False
            )
        except subprocess.TimeoutExpired:
            return _failed(f"did not end within {FILTER_WITHIN_S:g} s")
        if done.returncode:
            return _failed(f"ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[:_SHOWN]}")
        return (done.stdout.removesuffix(b"\n") if text else done.stdout) or _failed("gave nothing")

    def mend(values: Sequence[bytes | None]) -> Sequence[Mended]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(run, values))

    return mend


def _failed(what: str) -> DeadLetterError:
    return DeadLetterError("filter_failed", f"the command {what}")


def _strange(catalog: Catalog, letter: Letter, seen: Seen) -> str | None:
    """Why a letter is not of the log as it is; None for one that is, or whose place has expired."""
    record = seen.records.get(letter.place)
    if letter.place.offset >= seen.ends.get(letter.place.topic_partition, 0):
        found = "the log does not reach that far"
    elif record is not None and record.value != letter.value:
        found = "another record stands there"
    else:
        return None
    return f"{found}: topic `{catalog.topic}` was made anew since. produce its bytes by other means"


def _again(catalog: Catalog, decoder: Decoder, origin: Place, value: bytes, record: Record | None) -> Record:
    """The record to produce; where that of the letter has expired, its key is the one that the catalog names."""
    place = {"topic": catalog.topic, "partition": origin.topic_partition, "offset": origin.offset}
    headers = [(ORIGIN_PREFIX + name, str(part).encode()) for name, part in place.items()]
    if record is not None:
        others = [pair for pair in record.headers if not pair[0].startswith(ORIGIN_PREFIX)]
        return Record(record.key, value, (*others, *headers))
    named = decoder.fields(value)[catalog.key] if catalog.key else None
    return Record(None if named is None else str(named).encode(), value, headers)


def _judged(
    decoder: Decoder, values: Sequence[bytes | None], times: Sequence[int]
) -> tuple[dict[int, int], dict[int, DeadLetterError]]:
    """By number of the value, the event time of those that are events and why the others are none."""
    decoded = decoder.decode(0, range(len(values)), times, values)
    dead = decoded.dead_letters.select("offset", "reason", "detail").rows()
    return (
        dict(decoded.events.select("offset", "event_time").rows()),
        {number: DeadLetterError(reason, detail) for number, reason, detail in dead},
    )
