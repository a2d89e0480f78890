"""A source that is written at a steady rate while processes are killed, and what is published of it in the end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import psutil
import yaml
from beam_workers import workers
from clickhouse_connect.driver.exceptions import ClickHouseError
from published_states import contents

from infra import kafka
from infra.clickhouse import ClickHouseUnavailableError, connect
from infra.settings import Settings
from infra.stack import ServiceStatus, status
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from speed_layer import flink
from speed_layer.published import frontier

T = TypeVar("T")
START_MS = 1_780_000_000_000 // 3_600_000 * 3_600_000
PARTITIONS = 2
RECORDS = 200_000
FIRST = 20_000
SLOW_FROM = RECORDS * 2 // 3
PER_SECOND = 8_000
STEP_MS = 10
WAIT_S = 240.0
RECOVERED_S = 120.0
LAG_S = 5.0
KINDS = ("view", "cart", "buy", "visit")
TREE: dict[str, Any] = {
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "key": "user",
    "allowed_lateness": "1m",
    "dedup_horizon": 5_000,
    "topic_partitions": PARTITIONS,
    "fields": {
        "user": "string",
        "kind": {"type": "string", "required": True},
        "amount": {"type": "decimal", "scale": 2},
    },
    "metrics": {
        "events": {"agg": "count", "by": ["kind"], "window": "tumbling 10s"},
        "revenue": {"agg": "sum(amount)", "where": "kind = 'buy'", "window": "tumbling 10s"},
        "visitors": {"agg": "distinct(user)", "window": "tumbling 1m"},
        "visits": {"agg": "count", "where": "kind = 'visit'", "window": "session 40s max 5m"},
    },
}


def tree(name: str, **changes: Any) -> dict[str, Any]:
    """A catalog as a file holds it."""
    return TREE | {"source": name, "topic": f"{name}.events"} | changes


def catalog(name: str, **changes: Any) -> Catalog:
    """The catalog of a source."""
    return parse_catalog(tree(name, **changes), {}, "test")


def record(number: int) -> dict[str, Any]:
    """The record of a number, always the same: most are events, some come again, too late, or are none."""
    sent = START_MS + number * STEP_MS
    body = {
        "id": f"e{number}",
        "ts": sent - number * 7919 % 3_000,
        "user": f"u{number * 31 % 997}",
        "kind": KINDS[number * 17 % 4],
        "amount": f"{number % 1000}.{number % 100:02d}",
    }
    if number % 97 == 50:  # of the same partition
        again = record(number - 40)
        return again | {"timestamp": sent}
    if number % 211 == 7:
        body |= {"id": f"e{max(0, number - 20)}"}
    if number % 223 == 9:
        body |= {"ts": sent - 200_000}
    value = json.dumps(body).encode()
    return {"partition": number % PARTITIONS, "timestamp": sent, "value": b"\xff{" if number % 331 == 3 else value}


@dataclass
class Rig:
    """A source of one test.

    Attributes:
        settings: The stack.
        catalog: The source.
        directory: For the catalog's file.
        say: Told in a line what was measured.
        written: Records in the log.
        killed: Set when it has happened; until then the last third is written slowly.
        broken: What made the writer end early.
    """

    settings: Settings
    catalog: Catalog
    directory: Path
    say: Callable[[str], None] = print
    written: int = 0
    killed: threading.Event = field(default_factory=threading.Event)
    broken: list[BaseException] = field(default_factory=list)

    def write(self, count: int) -> None:
        """Appends the next records."""
        kafka.ensure_topics(self.settings, {self.catalog.topic: PARTITIONS})
        records = map(record, range(self.written, self.written + count))
        kafka.produce_all(kafka.producer(self.settings), self.catalog.topic, records)
        self.written += count

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Appends the rest of the records at a steady rate beside what the block does."""
        producer = kafka.producer(self.settings)

        def write() -> None:
            due = time.monotonic()
            try:
                while self.written < RECORDS:
                    each = PER_SECOND // 8 if self.written < SLOW_FROM or self.killed.is_set() else PER_SECOND // 64
                    end = min(self.written + each, RECORDS)
                    assert end < RECORDS or self.killed.is_set(), "nothing was killed"
                    kafka.produce_all(producer, self.catalog.topic, map(record, range(self.written, end)))
                    self.written = end
                    due += 1 / 8
                    time.sleep(max(0.0, due - time.monotonic()))
            except BaseException as error:
                self.broken.append(error)
                raise

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            self.killed.set()
            writer.join()
        assert not self.broken

    @contextmanager
    def speed(
        self, metrics: dict[str, Any] = TREE["metrics"], only: Sequence[str] = (), **options: Any
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A speed layer in a process of its own, stopped as a supervisor stops it; options are settings."""
        path = self.directory / f"{len(list(self.directory.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(tree(self.catalog.source, metrics=metrics)))
        command = [sys.executable, "-m", "speed_layer", "--catalog", str(path), *(["--only", *only] if only else [])]
        settings = self.settings.model_copy(update=options)
        process = subprocess.Popen(command, env={**os.environ, **settings.environ()})
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                assert process.wait(60) == 0

    def published(self, changed: Catalog | None = None) -> int:
        """How many records are published; 0 while there is no table, -1 while ClickHouse does not say."""
        try:
            client = connect(self.settings, self.settings.database(self.catalog.source), wait_seconds=0)
            return sum(frontier(client, changed or self.catalog).values())
        except ClickHouseUnavailableError:
            return -1
        except ClickHouseError:
            return 0

    def await_published(self, count: int, changed: Catalog | None = None) -> int:
        """Waits until so many records are published; returns how many are."""
        found = 0

        def reached() -> bool:
            nonlocal found
            found = self.published(changed)
            return found >= count

        wait(reached, f"{count} published records")
        return found

    def await_short_lag(self) -> None:
        """Waits until no record is missing that is older than `LAG_S`."""
        older: list[tuple[float, int]] = []

        def caught_up() -> bool:
            now = time.monotonic()
            older.append((now, self.written))
            due = max((count for at, count in older if at <= now - LAG_S), default=self.written)
            return self.published() >= due

        wait(caught_up, "a short lag")

    def contents(self) -> dict[str, pl.DataFrame]:
        """What is published."""
        return contents(connect(self.settings, self.settings.database(self.catalog.source)), self.catalog)

    def checkpoints(self) -> dict[str, int]:
        """Flink's counts of checkpoints of the source's job: completed, in_progress, failed, restored."""
        for port in range(self.settings.flink_ui_port, self.settings.flink_ui_port + flink.PORTS):
            address = f"http://{self.settings.host}:{port}/jobs"
            for job in (_get(f"{address}/overview") or {}).get("jobs", []):
                if job["name"].startswith(f"lockstep-{self.catalog.source}-") and job["state"] == "RUNNING":
                    return (_get(f"{address}/{job['jid']}/checkpoints") or {}).get("counts", {})
        return {}


def wait(observed: Callable[[], T], what: str) -> T:
    """Waits until something is observed that is not nothing; returns it."""
    deadline = time.monotonic() + WAIT_S
    while not (found := observed()):
        assert time.monotonic() < deadline, f"{what}: not in {WAIT_S} s"
        time.sleep(0.02)
    return found


def standing(settings: Settings, name: str) -> ServiceStatus:
    """A service as it is now."""
    return next(each for each in status(settings) if each.name == name)


def service(settings: Settings, name: str) -> psutil.Process:
    """The process of a service that runs."""
    pid = standing(settings, name).pid
    assert pid is not None
    return psutil.Process(pid)


def kill(*processes: psutil.Process) -> None:
    """Does what `kill -9` does."""
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)


@contextmanager
def held(process: psutil.Process) -> Iterator[None]:
    """A process that does not answer, with whatever it was doing half done."""
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def inserting(settings: Settings) -> list[psutil.Process]:
    """Workers whose request ClickHouse has not read: bytes wait at its end of their connection.

    Source: the receive queue in `/proc/net/tcp`; see proc(5).
    """
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f":{settings.clickhouse_port:04X}"
    unread = {_port(line[2]) for line in lines if line[1].endswith(port) and int(line[4].partition(":")[2], 16) > 0}
    return [
        worker
        for worker in workers(settings)
        if any(each.laddr.port in unread for each in worker.net_connections(kind="tcp"))
    ]


def _port(address: str) -> int:
    return int(address.partition(":")[2], 16)


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError):
        return None
