"""A source of events for tests of the speed layer: its catalog, its log, and what is published of it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import TopicPartition

from infra import kafka
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog

START_MS = 1_780_000_000_000 // 3_600_000 * 3_600_000
COUNTRIES = ("de", "fr", "it")
PARTITIONS = 2
WAIT_S = 240.0


def text(name: str) -> str:
    """The catalog as a file holds it: events and revenue by country in slices of 10 s, visitors by the minute, visits.

    The visits are sessions of a user's events of one country.
    """
    tree = {
        "source": name,
        "topic": f"{name}.events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "key": "user",
        "allowed_lateness": "1m",
        "topic_partitions": PARTITIONS,
        "fields": {
            "user": "string",
            "country": {"type": "string", "required": True},
            "amount": {"type": "decimal", "scale": 2},
        },
        "metrics": {
            "events": {"agg": "count", "by": ["country"], "window": "tumbling 10s"},
            "revenue": {"agg": "sum(amount)", "by": ["country"], "window": "tumbling 10s"},
            "visitors": {"agg": "distinct(user)", "window": "tumbling 1m"},
            "visits": {"agg": "count", "by": ["country"], "window": "session 2s max 30s"},
        },
    }
    return yaml.safe_dump(tree)


def catalog(name: str) -> Catalog:
    """The catalog of a source."""
    return parse_catalog(yaml.safe_load(text(name)), {}, "test")


def place(topic: str, partition: int, offset: int) -> TopicPartition:
    """A place in a log."""
    return TopicPartition(topic, partition, offset)


@dataclass
class Log:
    """Writes events into a source's topic.

    Attributes:
        settings: Where Kafka is.
        catalog: The source.
        written: Number of good events so far; the event `n` has id `e<n>` and happened `n` hundredths of a second in.
    """

    settings: Settings
    catalog: Catalog
    written: int = 0
    _producer: Any = field(default=None)

    def good(self, count: int) -> None:
        """Appends events that all count, spread over the partitions."""
        numbers = range(self.written, self.written + count)
        self.written += count
        self.append((n % PARTITIONS, START_MS + n * 10, event(n)) for n in numbers)

    def append(self, records: Iterable[tuple[int, int, bytes | None]]) -> None:
        """Appends records of (partition, record time, value)."""
        if self._producer is None:
            kafka.ensure_topics(self.settings, {self.catalog.topic: PARTITIONS})
            self._producer = kafka.producer(self.settings)
        kafka.produce_all(
            self._producer,
            self.catalog.topic,
            ({"partition": p, "timestamp": t, "value": v} for p, t, v in records),
        )


def event(number: int, **changes: Any) -> bytes:
    """The bytes of an event."""
    body = {
        "id": f"e{number}",
        "ts": START_MS + number * 10,
        "user": f"u{number % 50}",
        "country": COUNTRIES[number % len(COUNTRIES)],
        "amount": "0.10",
    }
    return json.dumps(body | changes).encode()


def rows(settings: Settings, source: Catalog, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query in the source's database."""
    return [tuple(row) for row in connect(settings, settings.database(source.source)).query(sql).result_rows]


def published(settings: Settings, source: Catalog) -> dict[str, int]:
    """Events published by country."""
    return dict(rows(settings, source, "SELECT country, sum(events) FROM speed_events FINAL GROUP BY country"))


def visits(settings: Settings, source: Catalog) -> list[tuple[Any, ...]]:
    """Key, country, start, end and events of every session that is published."""
    start, end = (f"toUnixTimestamp64Milli({name})" for name in ("window_start", "window_end"))
    live = "speed_visits FINAL WHERE is_deleted = 0"
    return rows(settings, source, f"SELECT session_key, country, {start}, {end}, events FROM {live} ORDER BY ALL")


def expected_visits(count: int) -> list[tuple[Any, ...]]:
    """The sessions of so many good events: one user's events of one country are 1.5 s apart, 20 in 30 s."""
    found = []
    for first in range(min(count, 150)):
        own = range(first, count, 150)
        for part in (own[index : index + 20] for index in range(0, len(own), 20)):
            following = part[-1] + 150
            more = len(part) == 20 and following < count
            end = START_MS + (following * 10 if more else part[-1] * 10 + 2000)
            found.append((f"u{first % 50}", COUNTRIES[first % 3], START_MS + part[0] * 10, end, len(part)))
    return sorted(found)


def expected(count: int) -> dict[str, int]:
    """What is to be published of so many good events."""
    return {name: len(range(index, count, len(COUNTRIES))) for index, name in enumerate(COUNTRIES)}


def awaited(reached: Callable[[], bool], what: str = "was not reached in time") -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@contextmanager
def running(settings: Settings, text_of_catalog: str, directory: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A speed layer in a process of its own, stopped as a supervisor stops it."""
    path = directory / "catalog.yaml"
    path.write_text(text_of_catalog)
    command = [sys.executable, "-m", "speed_layer", "--catalog", str(path)]
    process = subprocess.Popen(command, env={**os.environ, **settings.environ()})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            assert process.wait(60) == 0
