"""A batch run may be killed anywhere: a reader sees wholly what was there before, or wholly what is there after."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from infra import kafka as broker
from infra.catalog_file import load_catalog
from infra.clickhouse import connect, query_frame
from infra.settings import Settings
from metrics.catalog import Catalog

pytestmark = pytest.mark.faults

DAY = "2026-03-02"
START = 1_772_409_600_000
EVENTS = 4_000
PATIENCE_S = 180
CATALOG = """
source: {source}
topic: events.{source}
format: json
event_id: id
event_time: {{field: ts, unit: ms}}
out_of_orderness: 10s
allowed_lateness: 1h
topic_partitions: 2
fields: {{kind: string, user: string, amount: {{type: decimal, scale: 2}}}}
metrics:
  events: {{agg: count, window: [tumbling 1m, tumbling 1d]}}
  revenue: {{agg: sum(amount), by: [kind], window: tumbling 1d}}
  visitors: {{agg: distinct(user), window: tumbling 1d}}
  spent: {{ratio: [revenue, by_kind]}}
  by_kind: {{agg: count, by: [kind], window: tumbling 1d}}
"""

SEEN = """
SELECT (SELECT sum(value) FROM events_1m__batch), (SELECT sum(value) FROM events_1d__batch),
    (SELECT sum(value) FROM revenue_1d__batch), (SELECT sum(value) FROM visitors_1d__batch),
    (SELECT sum(value) FROM spent_1d__batch)
"""
"""What a reader polls: several views in one query."""

STAGES: dict[str, str] = {
    "planned": "SELECT count() FROM batch_runs WHERE run_id > {last:String}",
    "first rows": "SELECT count() FROM expected_events WHERE run_id > {last:String}",
    "all tables begun": "SELECT least((SELECT count() FROM batch_visitors WHERE run_id > {last:String}), "
    "(SELECT count() FROM batch_revenue WHERE run_id > {last:String}))",
    "complete": "SELECT count() FROM batch_runs WHERE run_id > {last:String} AND status = 'complete'",
    "published": "SELECT count() FROM publications WHERE run_id > {last:String}",
}
"""By stage what is greater than 0 from then on."""


@pytest.fixture
def source(kafka: Settings, clickhouse: Settings, unique: str, tmp_path: Path) -> tuple[Settings, Catalog, Path]:
    path = tmp_path / "catalog.yaml"
    path.write_text(CATALOG.format(source=unique))
    catalog = load_catalog(path)
    broker.ensure_topics(kafka, {catalog.topic: 2}, {"retention.ms": "-1"})
    return clickhouse, catalog, path


def send(settings: Settings, catalog: Catalog, first: int, count: int, after_ms: int = 0) -> None:
    """Events of the day, sent when they happened or so long after; and one by which the day is over."""

    def record(number: int, time: int, sent: int) -> dict[str, object]:
        body = {"id": f"e{number}", "ts": time, "kind": "ab"[number % 2], "user": f"u{number % 97}", "amount": "1.25"}
        return {"value": json.dumps(body).encode(), "timestamp": sent, "partition": number % 2}

    times = [START + (number * 7_919) % 86_400_000 for number in range(first, first + count)]
    made = [record(first + n, time, time + after_ms) for n, time in enumerate(sorted(times))]
    made.append(record(10**9 + first, START + 100 * 3_600_000, START + 100 * 3_600_000))
    broker.produce_all(broker.producer(settings), catalog.topic, made)


def test_whenever_it_is_killed_readers_see_the_old_values_or_the_new(source: tuple[Settings, Catalog, Path]) -> None:
    settings, catalog, path = source
    send(settings, catalog, 0, EVENTS)
    assert batch(settings, path).wait(PATIENCE_S) == 0
    client = connect(settings, settings.database(catalog.source))
    old = client.query(SEEN).result_rows[0]
    assert old[:2] == (EVENTS, EVENTS)
    send(settings, catalog, EVENTS, EVENTS // 2, after_ms=7_200_000)

    with polled(settings, catalog) as seen:
        for stage, sql in STAGES.items():
            last = newest(client)
            process = batch(settings, path)
            try:
                reached(lambda last=last, sql=sql: bool(count(client, sql, last)), process, stage)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
            if stage not in {"complete", "published"}:  # between these two lies no more than one insert
                assert client.query(SEEN).result_rows[0] == old, stage
        assert batch(settings, path).wait(PATIENCE_S) == 0
        new = client.query(SEEN).result_rows[0]
    assert new[:2] == (EVENTS + EVENTS // 2, EVENTS + EVENTS // 2)
    assert seen <= {old, new}
    assert len(seen) == 2
    assert query_frame(client, "SELECT uniqExact(run_id) AS n FROM publications")["n"].item() in {2, 3}


def test_of_two_runs_at_once_one_wins_and_the_other_is_refused(source: tuple[Settings, Catalog, Path]) -> None:
    settings, catalog, path = source
    send(settings, catalog, 0, EVENTS)
    running = [batch(settings, path, stderr=subprocess.PIPE) for _ in range(2)]
    told = [process.communicate(timeout=2 * PATIENCE_S)[1].decode() for process in running]
    client = connect(settings, settings.database(catalog.source))
    winners = query_frame(client, "SELECT run_id FROM publications")["run_id"].to_list()
    codes = sorted(process.returncode for process in running)
    # the second may have begun when the first was done; then it replaced it
    assert (codes, len(winners)) in [([0, 1], 1), ([0, 0], 2)]
    if codes == [0, 1]:
        (refused,) = (text for process, text in zip(running, told, strict=True) if process.returncode)
        assert f"{DAY} was published by run `{winners[0]}` while run" in refused
    assert client.query(SEEN).result_rows[0][:2] == (EVENTS, EVENTS)


def batch(settings: Settings, path: Path, stderr: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "batch_layer", "--catalog", str(path), "--from", DAY, "--to", DAY]
    where = os.environ | settings.environ()
    return subprocess.Popen(command, env=where, start_new_session=True, stdout=subprocess.DEVNULL, stderr=stderr)


def newest(client: Client) -> str:
    return str(query_frame(client, "SELECT max(run_id) AS run FROM batch_runs")["run"].item())


def count(client: Client, sql: str, last: str) -> int:
    return int(client.query(sql, parameters={"last": last}).result_rows[0][0])


def reached(stage: Callable[[], bool], process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not stage():
        assert process.poll() is None or stage(), f"the run ended before it was {name}"
        assert time.monotonic() < deadline, f"the run was not {name} in time"
        time.sleep(0.005)


@contextmanager
def polled(settings: Settings, catalog: Catalog) -> Iterator[set[tuple[object, ...]]]:
    """What a reader sees who asks for as long as the block runs."""
    client = connect(settings, settings.database(catalog.source))
    seen: set[tuple[object, ...]] = set()
    over = threading.Event()

    def poll() -> None:
        while not over.wait(0.05):
            seen.add(client.query(SEEN).result_rows[0])

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        yield seen
    finally:
        over.set()
        reader.join()
