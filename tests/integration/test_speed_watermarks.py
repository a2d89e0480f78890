"""Watermarks on a running speed layer: whatever one partition or one client does, the panes of the others are on time.

One client is punctual from the first phase to the last. Its slices have two seconds and are due five seconds after
their end. None of its rows may ever be late: that would say that the watermark had been dragged ahead.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from confluent_kafka.admin import NewPartitions
from speed_log import awaited, rows, running

from infra import kafka
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from serving import schema
from serving.status import Status, read_status

pytestmark = pytest.mark.faults

PUNCTUAL, SLOW, IDLE, ADDED = range(4)
SLICE_MS = 2000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def text(name: str) -> str:
    tree = {
        "source": name,
        "topic": f"{name}.events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "out_of_orderness": "5s",
        "allowed_lateness": "10m",
        "topic_partitions": 3,
        "fields": {"client": {"type": "string", "required": True}},
        "metrics": {"events": {"agg": "count", "by": ["client"], "window": "tumbling 2s"}},
    }
    return yaml.safe_dump(tree)


@pytest.fixture
def source(unique: str) -> Catalog:
    return parse_catalog(yaml.safe_load(text(unique)), {}, "test")


class Clients:
    """Writes events of named clients, whose clocks may be wrong."""

    def __init__(self, settings: Settings, source: Catalog) -> None:
        # unless it is told to, a broker takes no record stamped more than an hour ahead
        kafka.ensure_topics(settings, {source.topic: 3}, {"message.timestamp.after.max.ms": str(10**15)})
        self.topic = source.topic
        self.sent: dict[str, int] = {}
        self._settings = settings

    def send(self, client: str, partition: int, *, sent_ms: int = 0, happened_ms: int = 0) -> None:
        """One event; its times by how far they are from now."""
        self._produce(kafka.producer(self._settings), client, partition, sent_ms, happened_ms)

    @contextmanager
    def sending(self, client: str, partition: int, behind_ms: int = 0) -> Iterator[None]:
        """Twenty events a second beside what the block does, from a clock that is so far behind."""
        stop = threading.Event()
        producer = kafka.producer(self._settings)

        def write() -> None:
            while not stop.wait(0.05):
                self._produce(producer, client, partition, -behind_ms, -behind_ms)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()

    def _produce(self, producer: kafka.Producer, client: str, partition: int, sent_ms: int, happened_ms: int) -> None:
        number, now = self.sent.get(client, 0), _now()
        value = json.dumps({"id": f"{client}{number}", "ts": now + happened_ms, "client": client}).encode()
        record = {"value": value, "partition": partition, "timestamp": now + sent_ms}
        kafka.produce_all(producer, self.topic, [record])
        self.sent[client] = number + 1


def test_no_partition_and_no_client_stalls_or_drags_the_rest(stack: Settings, source: Catalog, tmp_path: Path) -> None:
    clients = Clients(stack, source)
    schema.apply(connect(stack), source, stack.database(source.source))

    def published(client: str) -> int:
        found = rows(stack, source, f"SELECT sum(events) FROM speed_events FINAL WHERE client = '{client}'")
        return int(found[0][0])

    def on_time(after: str) -> None:
        """The punctual client's slice that runs now gets its on-time pane, with no row of it late."""
        start = _now() // SLICE_MS * SLICE_MS
        of_slice = f"client = 'punctual' AND toUnixTimestamp64Milli(slice_start) = {start}"
        pane = f"SELECT pane, written_at >= addMilliseconds(slice_start, {SLICE_MS}) FROM speed_events FINAL"
        awaited(lambda: rows(stack, source, f"{pane} WHERE {of_slice}") == [("on_time", 1)], f"no pane {after}")
        late = "SELECT count() FROM speed_events WHERE client = 'punctual' AND pane = 'late'"
        assert rows(stack, source, late) == [(0,)], after

    with running(stack, text(source.source), tmp_path), clients.sending("punctual", PUNCTUAL):
        on_time("while others are idle")
        assert rows(stack, source, "SELECT count() FROM ledger WHERE topic_partition > 0") == [(0,)]

        with clients.sending("slow", SLOW, behind_ms=HOUR_MS):
            on_time("while another partition's events come an hour behind")
            awaited(lambda: published("slow") > 0)

        with clients.sending("yesterday", IDLE, behind_ms=DAY_MS):
            on_time("while another partition's only client lives a day behind")
        clients.send("yesterday", PUNCTUAL, sent_ms=-DAY_MS, happened_ms=-DAY_MS)
        clients.send("old", PUNCTUAL, happened_ms=-DAY_MS)
        on_time("after a client a day behind in the same partition")
        assert rows(stack, source, "SELECT disposition FROM exceptions FINAL") == [("late",)]

        for partition in (PUNCTUAL, SLOW):
            clients.send("ahead", partition, sent_ms=365 * DAY_MS, happened_ms=365 * DAY_MS)
        on_time("after records stamped a year ahead")
        [(ahead_ms,)] = rows(stack, source, "SELECT max(toUnixTimestamp64Milli(watermark)) FROM watermarks FINAL")
        assert ahead_ms <= _now()

        admin = kafka.admin(stack)
        [added] = admin.create_partitions([NewPartitions(source.topic, 4)]).values()
        added.result(30)
        with clients.sending("new", ADDED):
            awaited(lambda: published("new") > 0, "the added partition is not read")
            on_time("while an added partition is read")
            awaited(lambda: len(_status(stack, source).lags) == 4)

        awaited(lambda: all(published(name) == clients.sent[name] for name in ("slow", "yesterday", "ahead", "new")))
        awaited(lambda: _status(stack, source).lags[ADDED].lag_offsets == 0)
        lags = _status(stack, source).lags
        assert max(lag.lag_offsets for lag in lags) < 200
        assert all(lag.skew_ms is not None and lag.skew_ms <= 15_000 for lag in lags)
        assert _status(stack, source).alarms == ()


def _status(settings: Settings, source: Catalog) -> Status:
    return read_status(connect(settings), settings.database(source.source))


def _now() -> int:
    return time.time_ns() // 1_000_000
