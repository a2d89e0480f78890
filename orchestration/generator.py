"""`lockstep generate`: a source's events into the log, history first, then live, and the truth about them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from infra.settings import Settings
from metrics.catalog import Catalog
from orchestration.ground_truth import GroundTruth
from orchestration.happenings import DAY_MS, Records
from orchestration.produce import ByTime, LogWriter, Outgoing, ensure_event_topic
from orchestration.traffic import SPAN_RECORDS, Disturbances, Limits, Span, Traffic, TrafficError, messages
from orchestration.worlds import kind_of

_SHARES = {"late": 0.002, "duplicates": 0.005, "out_of_order": 0.02, "bad": 0.001}
_SMALLEST_DISTURBED = 100  # a span with fewer records holds normal ones only
_LIVE_STEP_MS = 1_000

Progress = Callable[[str, int, int], None]
"""Told the phase (`history` or `live`), how many more records were sent and how many there are in all."""


@dataclass(frozen=True)
class GenerateOptions:
    """What to make.

    Attributes:
        events: records of history, repeated and bad ones included.
        seed: the same seed, options and `now` give the same events.
        days: closed UTC days of history before the running one.
        rate: records a second of the live part.
        live: seconds for which to go on live after the history.
        late: late records of history and live together; None: 0.2 % of all.
        duplicates: records sent twice; None: 0.5 %.
        out_of_order: records sent up to `allowed_lateness` late, which count; None: 2 %.
        bad: records that are no events, of four kinds; None: 0.1 %.
        oversized: records with 1 MB of payload.
        id_conflicts: other events under a used id.
        users: users of the shop, or devices; None: as many as suit the records.
        now: end of the history; None: the clock's.
    """

    events: int = 200_000
    seed: int = 1
    days: int = 3
    rate: float = 200.0
    live: float = 0.0
    late: int | None = None
    duplicates: int | None = None
    out_of_order: int | None = None
    bad: int | None = None
    oversized: int = 0
    id_conflicts: int = 0
    users: int | None = None
    now: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("events", "seed", "days", "rate", "live", "oversized", "id_conflicts", *_SHARES):
            value = getattr(self, name)
            if value is not None and value < 0:
                message = f"`{name}` must not be negative; got {value}"
                raise TrafficError(message)
        if self.users is not None and self.users < 1:
            message = f"`users` must be at least 1; got {self.users}"
            raise TrafficError(message)
        if self.now is not None and self.now.tzinfo is None:
            message = f"`now` must have a time zone; got {self.now.isoformat()}. append Z for UTC"
            raise TrafficError(message)

    @property
    def live_events(self) -> int:
        """Records of the live part."""
        return round(self.rate * self.live)

    @property
    def disturbances(self) -> Disturbances:
        """How many records of each kind there are, in all."""
        total = self.events + self.live_events
        asked = {name: getattr(self, name) for name in _SHARES}
        known = {name: round(total * _SHARES[name]) if asked[name] is None else asked[name] for name in _SHARES}
        return Disturbances(**known, oversized=self.oversized, id_conflicts=self.id_conflicts)


@dataclass(frozen=True)
class GenerateResult:
    """What was made: the topic, records sent in history and live, and the seconds it took."""

    topic: str
    sent: int
    history: int
    live: int
    seconds: float
    truth: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A span and how many of its records are not normal."""

    span: Span
    disturbances: Disturbances


class Generation:
    """The pure half: plans spans, makes their records and counts the truth.

    Args:
        catalog: describes the events of the shop, or of the devices.
        options: what to make.
        now: milliseconds since the epoch at which the history ends.

    Raises:
        TrafficError: the catalog describes other events, or there is no room for what is asked for.
    """

    def __init__(self, catalog: Catalog, options: GenerateOptions, now: int) -> None:
        world = kind_of(catalog)
        self._options = options
        self._now = now
        limits = Limits(
            _milliseconds(catalog.out_of_orderness), _milliseconds(catalog.allowed_lateness), catalog.dedup_horizon
        )
        self.days = closed_days(now, limits, options.days)
        self.floor = self.days[0] * DAY_MS if self.days else now // DAY_MS * DAY_MS
        users = options.users or world.actors(options.events + options.live_events)
        text = json.dumps([asdict(replace(options, now=None)), now, catalog.topic], sort_keys=True)
        self.run = xxhash.xxh3_64_hexdigest(text.encode())[:10]
        self._traffic = Traffic(options.seed, limits, self.floor, lambda rng: world.make(rng, users))
        self._today = now // DAY_MS * DAY_MS
        self.truth = GroundTruth(self.run, self._traffic.world.answers())
        self._history, self._live = self._divide(limits)

    def history(self) -> Iterator[Records]:
        """The records of the closed days and of today until now, in the order in which they are sent."""
        for part in self._history:
            yield self._traffic.records(part.span, part.disturbances)

    def live(self, begun: int) -> Iterator[Records]:
        """The records from `begun` (ms) on, evenly spaced, in steps of about a second."""
        for part in self._live:
            span = replace(part.span, start=begun + part.span.start, end=begun + part.span.end)
            records = self._traffic.records(span, part.disturbances, late_floor=self._today)
            first, last = span.start, span.end
            for step in range(first, last, _LIVE_STEP_MS):
                begin, end = np.searchsorted(records.at, [step, step + _LIVE_STEP_MS])
                if begin < end:
                    yield records.rows(np.arange(begin, end))

    def outgoing(self, records: Records) -> Iterator[Outgoing]:
        """The records as they are to be written; the truth takes note of them."""
        numbered = self.truth.exceptions
        uncounted = {index: numbered + n for n, index in enumerate(self.truth.add(records))}
        for index, (key, value, at) in enumerate(messages(records, self.run, self._traffic.world)):
            exception = uncounted.get(index)
            yield Outgoing(key, value, at, placed=None if exception is None else self._placed(exception))

    def document(self, topic: str) -> dict[str, Any]:
        """The ground truth as plain values."""
        return {
            "topic": topic,
            "run": self.run,
            "seed": self._options.seed,
            "now": _iso(self._now),
            "closed_days": [_iso(day * DAY_MS)[:10] for day in self.days],
            **self.truth.document(),
        }

    def _placed(self, exception: int) -> Callable[[int, int], None]:
        return lambda topic_partition, offset: self.truth.place(exception, topic_partition, offset)

    def _divide(self, limits: Limits) -> tuple[list[Part], list[Part]]:
        """Spans of history and live, with the disturbances shared out over them."""
        history = _spans(self.floor, self._now, self._options.events)
        if self._options.events and not history:
            message = f"`days` must leave time for the history; got {self._options.days} at {_iso(self._now)}"
            raise TrafficError(message)
        live = _even_spans(self._options.live_events, self._options.rate)
        spans = history + live
        disturbances = self._options.disturbances
        weight = np.array([span.records if span.records >= _SMALLEST_DISTURBED else 0 for span in spans], dtype=float)
        if not weight.any():
            weight = np.array([float(span.records) for span in spans])
        # A late event needs room before it: not at the very start, and live ones must not reach back into closed days.
        room_from = self.floor + limits.late_after + 10 * 60_000
        live_has_room = self._now - self._today > limits.late_after + 10 * 60_000
        room = np.array(
            [max(0.0, (s.end - max(s.start, room_from)) / (s.end - s.start)) for s in history]
            + [float(live_has_room)] * len(live)
        )
        shares = {
            name: _share_out(count, weight * room if name in {"late", "out_of_order"} else weight)
            for name, count in asdict(disturbances).items()
        }
        parts = [
            Part(span, Disturbances(**{name: share[number] for name, share in shares.items()}))
            for number, span in enumerate(spans)
        ]
        return parts[: len(history)], parts[len(history) :]


def closed_days(now: int, limits: Limits, count: int) -> list[int]:
    """The last `count` UTC days, as numbers since the epoch, to which nothing counted can be added; oldest first."""
    last = (now - limits.late_after) // DAY_MS - 1
    return list(range(last - count + 1, last + 1))


def generate(
    settings: Settings,
    catalog: Catalog,
    options: GenerateOptions,
    truth_file: Path | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.time,
) -> GenerateResult:
    """Write a source's history to the catalog's topic, then go on live.

    Args:
        settings: where the broker is.
        catalog: of the shop or of the devices; its topic is created if it is missing.
        options: what to make.
        truth_file: gets the ground truth (JSON) at the end.
        progress: told of records sent.
        clock: seconds since the epoch.

    Raises:
        TrafficError: the catalog is of other events, or there is no room for what is asked for.
        ProduceError: the log cannot be written to.
    """
    begun = clock()
    now = round(begun * 1000) if options.now is None else round(options.now.timestamp() * 1000)
    generation = Generation(catalog, options, now)
    ensure_event_topic(settings, catalog.topic, catalog.topic_partitions, generation.floor)
    with LogWriter(settings, catalog.topic, clock) as writer:
        for records in generation.history():
            told = _told(progress, "history", options.events)
            writer.send_all(generation.outgoing(records), progress=told)
        writer.flush()
        history = writer.sent
        started = clock()
        pace = ByTime(started, origin=round(started * 1000))
        for records in generation.live(round(started * 1000)):
            told = _told(progress, "live", options.live_events)
            writer.send_all(generation.outgoing(records), pace, told)
    truth = generation.document(catalog.topic)
    if truth_file is not None:
        truth_file.parent.mkdir(parents=True, exist_ok=True)
        truth_file.write_text(json.dumps(truth, indent=1), encoding="utf-8")
    return GenerateResult(catalog.topic, writer.sent, history, writer.sent - history, clock() - begun, truth)


def _told(progress: Progress | None, phase: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda count: progress(phase, count, total)


def _spans(start: int, end: int, records: int) -> list[Span]:
    """[start, end) cut at UTC midnights and where there would be too many records, with each span's share of them."""
    if records == 0 or end <= start:
        return []
    cuts = [start, *range((start // DAY_MS + 1) * DAY_MS, end, DAY_MS), end]
    pieces: list[tuple[int, int]] = []
    for low, high in zip(cuts, cuts[1:], strict=False):
        count = 1 + int(records * (high - low) / (end - start)) // SPAN_RECORDS
        edges = [low + (high - low) * n // count for n in range(count + 1)]
        pieces += [piece for piece in zip(edges, edges[1:], strict=False) if piece[1] > piece[0]]
    shares = _share_out(records, np.array([float(high - low) for low, high in pieces]))
    return [Span(low, high, share) for (low, high), share in zip(pieces, shares, strict=True) if share]


def _even_spans(records: int, rate: float) -> list[Span]:
    """Spans from 0 ms on with `rate` records a second."""
    spans: list[Span] = []
    made = 0
    while made < records:
        count = min(SPAN_RECORDS, records - made)
        spans.append(Span(int(made / rate * 1000), int((made + count) / rate * 1000), count, even=True))
        made += count
    return spans


def _share_out(count: int, weight: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
    """`count` in whole numbers, as near to the weights as rounding allows."""
    if count == 0 or not len(weight):
        return [0] * len(weight)
    if not weight.any():
        message = f"{count} disturbed events are asked for; got no room for any. ask for more days of history"
        raise TrafficError(message)
    edges = np.round(np.cumsum(weight) / weight.sum() * count).astype(np.int64)
    shares: list[int] = np.diff(edges, prepend=0).tolist()
    return shares


def _milliseconds(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


def _iso(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
