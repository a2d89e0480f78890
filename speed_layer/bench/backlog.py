"""The backlogs that are drained: events with known dispositions, and what is to be counted of them.

Most events count. Of about a thousand one is sent twice, of ten thousand one comes hours late, of a hundred thousand
one lacks a required field: few enough to leave the rate alone, and enough for a system that does not look to be caught.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from infra import kafka
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import COUNTED, DEAD_LETTER, DUPLICATE, LATE

START_MS = 1_780_000_000_000
PER_SECOND = 10_000
"""Events in a second of event time."""

SLICE_MS = 10_000
TWICE, TOO_LATE, BAD = 997, 9_973, 99_991
"""Every so manieth event is a copy of the one before it in its partition, late, or lacks its type."""

_OUT_OF_ORDER_MS = 5_000
_LATE_MS = 2 * 3_600_000
_TYPES_A = ("page_view", "click", "cart", "purchase", "pay")
_TYPES_B = (*["page_view"] * 10, *["click"] * 4, *["add_to_cart"] * 2, "checkout", "purchase", *["request"] * 2)
_COUNTRIES = ("DE", "FR", "GB", "IT", "US", "ES")
_SERVICES = ("web", "search", "catalog", "cart", "payment", "login")
_STATUSES = (*[200] * 47, 404, 500, 503)

Place = tuple[int, str]
"""Start of a slice of `SLICE_MS` in ms, and an event type."""


class Sum(NamedTuple):
    """What is known of a place: events, and the sum of their amounts in hundredths."""

    events: int
    cents: int


class Event(NamedTuple):
    """A record to be written."""

    partition: int
    timestamp: int
    value: bytes
    disposition: str
    place: Place
    cents: int


@dataclass
class Backlog:
    """A backlog in a topic.

    Attributes:
        topic: Where it is.
        events: Number of records.
        dispositions: Number of records by disposition.
    """

    topic: str
    events: int
    dispositions: Counter[str] = field(default_factory=Counter)
    _counts: Counter[tuple[str, Place]] = field(default_factory=Counter)
    _cents: Counter[tuple[str, Place]] = field(default_factory=Counter)

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        self.dispositions[event.disposition] += 1
        self._counts[event.disposition, event.place] += 1
        self._cents[event.disposition, event.place] += event.cents

    def expected(self, *dispositions: str) -> dict[Place, Sum]:
        """What a system must find that counts events of these dispositions, which is `COUNTED` if none is given."""
        found: dict[Place, Sum] = {}
        for (disposition, place), number in self._counts.items():
            if disposition in (dispositions or (COUNTED,)):
                before = found.get(place, Sum(0, 0))
                found[place] = Sum(before.events + number, before.cents + self._cents[disposition, place])
        return found


Body = Callable[[int, random.Random], tuple[str, int, str]]
"""Of a number, an event's type, its amount in hundredths, and the fields after its type as JSON without braces."""


def body_a(number: int, draw: random.Random) -> tuple[str, int, str]:
    """A short event, about 155 bytes in all."""
    kind = draw.randrange(100)
    cents = kind * 100 + number % 100
    return (
        _TYPES_A[kind % 5],
        cents,
        f'"user_id":"u{draw.randrange(5000)}","country":"{_COUNTRIES[kind % 6]}",'
        f'"page":"/shop/products/{kind}/details","amount":"{kind}.{number % 100:02d}"',
    )


def body_b(number: int, draw: random.Random) -> tuple[str, int, str]:
    """An event of the shop, with every field that its type has there."""
    kind = _TYPES_B[draw.randrange(len(_TYPES_B))]
    user = f'"user_id":"u{draw.randrange(50_000)}","country":"{_COUNTRIES[number % 6]}"'
    if kind == "request":
        latency = f'"latency_ms":{draw.randrange(1_000, 900_000) / 1000}'
        return kind, 0, f'{user},"service":"{_SERVICES[number % 6]}","status":{_STATUSES[draw.randrange(50)]},{latency}'
    product = draw.randrange(1, 200)
    cents = draw.randrange(100, 50_000) if kind in {"add_to_cart", "checkout", "purchase"} else 0
    paid = f',"amount":"{cents // 100}.{cents % 100:02d}"' if cents else ""
    if kind == "purchase":
        paid += f',"product":"p{product}","quantity":{draw.randrange(1, 4)},"method":"wallet"'
    return kind, cents, f'{user},"page":"/products/{product}"{paid}'


def events(number: int, partitions: int, body: Body, span: tuple[int, int] | None = None) -> Iterator[Event]:
    """So many events in the order of their record timestamps, the same each time, spread evenly over partitions.

    Args:
        number: How many.
        partitions: Of the topic.
        body: What they are.
        span: From when to when they are sent (ms); None: from `START_MS` on, `PER_SECOND` in each second.
    """
    start, end = span or (START_MS, START_MS + number * 1000 // PER_SECOND)
    draw = random.Random(1)
    last: list[Event | None] = [None] * partitions
    for n in range(number):
        moment = start + n * (end - start) // number
        before = last[n % partitions]
        if n % TWICE == TWICE - 1 and before is not None and before.disposition == COUNTED:
            yield before._replace(timestamp=moment, disposition=DUPLICATE)
            continue
        late, bad = n % TOO_LATE == TOO_LATE - 1, n % BAD == BAD - 1
        happened = moment - draw.randrange(_OUT_OF_ORDER_MS) - (_LATE_MS if late else 0)
        kind, cents, rest = body(n, draw)
        typed = "" if bad else f'"event_type":"{kind}",'
        event = Event(
            n % partitions,
            moment,
            f'{{"event_id":"e{n:08d}","ts":{happened},{typed}{rest}}}'.encode(),
            DEAD_LETTER if bad else LATE if late else COUNTED,
            (happened // SLICE_MS * SLICE_MS, kind),
            cents,
        )
        last[n % partitions] = event
        yield event


def of_events(topic: str, number: int, partitions: int, body: Body) -> Backlog:
    """What so many first events of a topic come to, without writing them."""
    backlog = Backlog(topic, number)
    for event in events(number, partitions, body):
        backlog.add(event)
    return backlog


def fill(  # noqa: PLR0917 - what is written, then how
    settings: Settings,
    catalog: Catalog,
    number: int,
    body: Body,
    report: Callable[[int], None] = lambda _: None,
    span: tuple[int, int] | None = None,
) -> Backlog:
    """Writes a backlog into the catalog's topic; `report` is told now and then how many events are written."""
    kafka.ensure_topics(settings, {catalog.topic: catalog.topic_partitions})
    backlog = Backlog(catalog.topic, number)
    producer = kafka.producer(settings, {"linger.ms": 50, "queue.buffering.max.messages": 1_000_000})

    def records() -> Iterator[Mapping[str, Any]]:
        for written, event in enumerate(events(number, catalog.topic_partitions, body, span)):
            backlog.add(event)
            if written % 500_000 == 0:
                report(written)
            yield {"value": event.value, "partition": event.partition, "timestamp": event.timestamp}

    kafka.produce_all(producer, catalog.topic, records())
    return backlog
