"""The speed layer under measurement: it drains a backlog into ClickHouse, with everything on that it always does."""

import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from infra import kafka
from infra.clickhouse import connect, quote
from infra.measure import SPEED, Meter, of_services
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import COUNTED, DEAD_LETTER, DISPOSITIONS, LATE
from speed_layer import published
from speed_layer.bench.backlog import SLICE_MS, Backlog, Place, Sum
from speed_layer.bench.run import BenchError, Run, Stretch
from speed_layer.main import run

PARTS = {"system": SPEED, "broker": ("kafka",), "clickhouse": ("clickhouse",)}
"""Whose processor time and memory are told apart: the engine's, and what serves every system."""

_POLL_S = 0.05
_LONGEST_S = 600.0


def drain(settings: Settings, catalog: Catalog, backlog: Backlog) -> Run:
    """Runs the catalog over the backlog, in a database of its own that is removed again.

    The workers are new, as they are for every job; the time in which they start is not in the rate.

    Raises:
        BenchError: The speed layer ended, or took too long.
    """
    own = replace(catalog, source=f"bench_{uuid.uuid4().hex[:8]}", topic=backlog.topic)
    database = settings.database(own.source)
    meter = Meter({part: of_services(settings, names) for part, names in PARTS.items()})
    written = _written(settings, own)
    started = time.monotonic()
    try:
        with meter:
            job = threading.Thread(target=run, args=(settings, own, True), daemon=True)
            job.start()
            first = _published(settings, own, job, 0)
            cpu_before = meter.cpu()
            last = _published(settings, own, job, backlog.events)
            cpu_s = {part: seconds - cpu_before[part] for part, seconds in meter.cpu().items()}
        job.join()
        whole_s = time.monotonic() - started
        exact = _is_exact(connect(settings, database), own, backlog)
        new = {name: end - written[name] for name, end in _written(settings, own).items()}
        exact &= all(number >= backlog.dispositions[name] for name, number in new.items())  # a replay may repeat some
    finally:
        connect(settings).command(f"DROP DATABASE IF EXISTS {quote(database)}")
    stretch = Stretch(last[1] - first[1], last[0] - first[0], cpu_s)
    return Run(stretch, whole_s, meter.peaks(), exact, {"job_started_in_s": round(first[0] - started, 2)})


def _written(settings: Settings, catalog: Catalog) -> dict[str, int]:
    """Records in the topics of late events and dead letters, by disposition."""
    found = dict.fromkeys((LATE, DEAD_LETTER), 0)
    for name, topic in ((LATE, catalog.late_topic), (DEAD_LETTER, catalog.dlq_topic)):
        with suppress(kafka.TopicError):
            found[name] = sum(end for _, end in kafka.log_offsets(settings, topic).values())
    return found


def _published(settings: Settings, catalog: Catalog, job: threading.Thread, offsets: int) -> tuple[float, int]:
    """Waits until so many offsets are published, and at least one partition is known; when that was, and how many."""
    client: Client | None = None
    deadline = time.monotonic() + _LONGEST_S
    while job.is_alive() and time.monotonic() < deadline:
        try:
            client = client or connect(settings, settings.database(catalog.source))
            reached = published.frontier(client, catalog)
            if reached and sum(reached.values()) >= offsets:
                return time.monotonic(), sum(reached.values())
        except ClickHouseError:  # the database is not there yet
            pass
        time.sleep(_POLL_S)
    how = f"took longer than {_LONGEST_S:g} s" if job.is_alive() else "ended before it was done"
    msg = f"the speed layer was to publish {offsets:,} offsets, and {how}. read the logs under `data_dir`"
    raise BenchError(msg)


def _is_exact(client: Client, catalog: Catalog, backlog: Backlog) -> bool:
    """Whether the ledger has every disposition, and the tables of counts and sums every slice, as it must be."""
    columns = ", ".join(f"sum({name})" for name in DISPOSITIONS)
    ledger = client.query(f"SELECT {columns} FROM ledger FINAL").result_rows[0]
    if tuple(ledger) != tuple(backlog.dispositions[name] for name in DISPOSITIONS):
        return False
    names = {metric.name for metric in catalog.metrics}
    checks = []
    if "sessions" in names:
        checks.append(_sum(client, "sessions") == backlog.dispositions[COUNTED])
    if "events_by_type" in names:
        checks.append(_by_type(client, "events_by_type", "0") == _wider(backlog.expected(), 60_000, cents=False))
    if {"events", "revenue"} <= names:
        expected = backlog.expected()
        checks.append(_by_type(client, "events", "0") == {place: Sum(n, 0) for place, (n, _) in expected.items()})
        checks.append(_by_type(client, "revenue", "total") == expected)
    return bool(checks) and all(checks)


def _sum(client: Client, metric: str) -> int:
    sessions = "WHERE is_deleted = 0" if metric == "sessions" else ""
    return int(client.query(f"SELECT sum(events) FROM speed_{metric} FINAL {sessions}").result_rows[0][0])


def _by_type(client: Client, metric: str, total: str) -> dict[Place, Sum]:
    rows = client.query(
        "SELECT toUnixTimestamp64Milli(slice_start), event_type, events, toInt64(100 * "
        f"{total}) FROM {quote(f'speed_{metric}')} FINAL"
    ).result_rows
    return {(start, kind): Sum(number, cents) for start, kind, number, cents in rows}


def _wider(places: Mapping[Place, Sum], width_ms: int, *, cents: bool) -> dict[Place, Sum]:
    assert width_ms % SLICE_MS == 0
    found: dict[Place, Sum] = {}
    for (start, kind), one in places.items():
        place = (start // width_ms * width_ms, kind)
        before = found.get(place, Sum(0, 0))
        found[place] = Sum(before.events + one.events, before.cents + (one.cents if cents else 0))
    return found
