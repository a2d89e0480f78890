"""The speed layer on real Flink, Kafka and ClickHouse: what it publishes, and that nothing on the way changes it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
import speed_log
import yaml
from beam_workers import workers
from speed_log import START_MS, Log, awaited, event, expected, expected_visits, published, rows, running, visits

from infra import kafka
from infra.clickhouse import connect
from infra.settings import Settings
from infra.stack import status
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from orchestration.ingest import ingest
from speed_layer import flink, jobs
from speed_layer.main import run
from speed_layer.published import frontier

pytestmark = pytest.mark.faults

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def source(unique: str) -> Catalog:
    return speed_log.catalog(unique)


@pytest.fixture
def log(stack: Settings, source: Catalog) -> Log:
    return Log(stack, source)


def test_every_offset_is_published_with_its_disposition(stack: Settings, source: Catalog, log: Log) -> None:
    log.good(1000)
    late = event(1, id="late")
    future = event(1, id="future", ts=START_MS + 3_600_000)
    log.append([(0, START_MS + 10_000, value) for value in (event(4), late, event(4, ts=START_MS), b"\xff{", future)])
    log.append([(0, START_MS + 200_000, event(2, id="too late"))])
    log.append([(1, START_MS + 10_000, value) for value in (event(5, country=None), None)])

    assert run(stack, source, until_drained=True) == 0

    counts = expected(1000)
    counts["fr"] += 1  # sent 10 seconds after it happened: within the lateness
    assert published(stack, source) == counts
    assert rows(stack, source, "SELECT sum(total) FROM speed_revenue FINAL") == [(Decimal("100.10"),)]
    dispositions = ", ".join(f"sum({name})" for name in ("records", "counted", "late", "duplicate", "id_conflict"))
    assert rows(stack, source, f"SELECT {dispositions}, sum(dead_letter) FROM ledger FINAL") == [
        (1008, 1001, 1, 1, 1, 4)
    ]
    exceptions = rows(
        stack,
        source,
        "SELECT topic_partition, offset, disposition FROM exceptions FINAL ORDER BY topic_partition, offset",
    )
    assert exceptions == [
        (0, 500, "duplicate"),
        (0, 502, "id_conflict"),
        (0, 503, "dead_letter"),
        (0, 504, "dead_letter"),
        (0, 505, "late"),
        (1, 500, "dead_letter"),
        (1, 501, "dead_letter"),
    ]
    letters = {headers["offset"]: (value, headers) for value, headers in _topic(stack, source.dlq_topic)}
    assert {(headers["partition"], offset) for offset, (_, headers) in letters.items()} >= {("0", "503"), ("0", "504")}
    assert letters["503"][0] == b"\xff{"
    assert letters["504"][1]["reason"] == "event_time_in_future"
    assert all(headers["topic"] == source.topic for _, headers in letters.values())
    [(value, headers)] = _topic(stack, source.late_topic)
    assert value == event(2, id="too late")
    assert int(headers["lateness_ms"]) == 200_000 - 20


def test_slices_that_have_ended_are_on_time_and_the_last_is_early(stack: Settings, source: Catalog, log: Log) -> None:
    log.good(4500)

    run(stack, source, until_drained=True)

    panes = dict(rows(stack, source, "SELECT slice_start, any(pane) FROM speed_events FINAL GROUP BY slice_start"))
    assert [panes[moment] for moment in sorted(panes)] == ["on_time", "on_time", "on_time", "early", "early"]
    reached = rows(stack, source, "SELECT toUnixTimestamp64Milli(watermark), next_offset FROM watermarks FINAL")
    assert {offset for _, offset in reached} == {2250}
    assert {moment for moment, _ in reached} <= {START_MS + 44_990 - 10_000, START_MS + 44_980 - 10_000}


def test_a_second_run_over_what_is_published_starts_no_job(stack: Settings, source: Catalog, log: Log) -> None:
    log.good(100)
    run(stack, source, until_drained=True)
    before = {job.id for job in jobs.jobs(stack)}

    run(stack, source, until_drained=True)

    assert {job.id for job in jobs.jobs(stack)} == before
    assert published(stack, source) == expected(100)


def test_an_older_file_that_is_appended_later_counts_as_well(stack: Settings, source: Catalog, log: Log) -> None:
    log.append([(0, START_MS + 7 * 86_400_000, event(0, id="new", ts=START_MS + 7 * 86_400_000))])
    log.good(3000)

    run(stack, source, until_drained=True)

    assert sum(published(stack, source).values()) == 3001


def test_the_sessions_of_a_real_clickstream_are_those_of_an_independent_computation(
    stack: Settings, unique: str
) -> None:
    tree = yaml.safe_load((DATA / "clickstream.yaml").read_text())
    sessions = {"agg": "count", "window": "session 30m"}
    tree |= {
        "source": unique,
        "topic": f"{unique}.events",
        "metrics": {"sessions": sessions, "by_platform": sessions | {"by": ["platform"]}},
    }
    clicks = parse_catalog(tree, {}, "test")
    ingest(stack, clicks, DATA / "clickstream.csv.gz")

    run(stack, clicks, until_drained=True)

    live = "FINAL WHERE is_deleted = 0"
    assert rows(stack, clicks, f"SELECT count(), sum(events) FROM speed_sessions {live}") == [(3605, 31_076)]
    counts = rows(stack, clicks, f"SELECT platform, count() FROM speed_by_platform {live} GROUP BY platform")
    assert dict(counts) == {"desktop": 1890, "mobile": 1295, "tablet": 420}


def test_killed_workers_change_no_count_though_they_remember_nothing(
    stack: Settings, source: Catalog, log: Log, tmp_path: Path
) -> None:
    log.good(2000)
    forgetful = stack.model_copy(update={"worker_memory_bytes": 0})
    with running(forgetful, speed_log.text(source.source), tmp_path):
        awaited(lambda: _offsets(stack, source) >= 500)
        with _writing(log, 30_000):
            awaited(lambda: _offsets(stack, source) >= 4000)
            killed = workers(stack)
            assert killed
            for worker in killed:
                os.kill(worker.pid, signal.SIGKILL)
            assert _offsets(stack, source) < 32_000
        awaited(lambda: _offsets(stack, source) == log.written)
    assert published(stack, source) == expected(log.written)
    assert visits(stack, source) == expected_visits(log.written)
    assert rows(stack, source, "SELECT sum(records), sum(counted) FROM ledger FINAL") == [(log.written, log.written)]


def test_a_killed_process_is_followed_by_one_that_takes_over(
    stack: Settings, source: Catalog, log: Log, tmp_path: Path
) -> None:
    log.good(1000)
    with running(stack, speed_log.text(source.source), tmp_path) as process:
        awaited(lambda: _offsets(stack, source) >= 1000)
        process.kill()
        process.wait()
    log.good(2000)

    run(stack, source, until_drained=True)

    assert published(stack, source) == expected(3000)
    for job in jobs.jobs(stack):
        if job.name.startswith(f"lockstep-{source.source}-"):
            jobs.cancel(stack, job.id)


def test_a_job_that_is_gone_is_submitted_again(stack: Settings, source: Catalog, log: Log, tmp_path: Path) -> None:
    log.good(1000)
    with running(stack, speed_log.text(source.source), tmp_path):
        awaited(lambda: _offsets(stack, source) >= 1000)
        for job in jobs.jobs(stack):
            if job.name.startswith(f"lockstep-{source.source}-"):
                jobs.cancel(stack, job.id)
        log.good(1000)
        awaited(lambda: _offsets(stack, source) == 2000)
    assert published(stack, source) == expected(2000)


def test_a_job_that_ended_while_nobody_listened_is_submitted_again(
    stack: Settings, source: Catalog, log: Log, tmp_path: Path
) -> None:
    log.good(1000)
    with running(stack, speed_log.text(source.source), tmp_path) as process:
        awaited(lambda: _offsets(stack, source) >= 1000)
        process.kill()
        process.wait()
    assert flink.cancel(stack, f"lockstep-{source.source}-")
    log.good(1000)

    run(stack, source, until_drained=True)

    assert published(stack, source) == expected(2000)


def test_any_service_may_be_away_for_a_while(stack: Settings, source: Catalog, log: Log, tmp_path: Path) -> None:
    log.good(1000)
    with running(stack, speed_log.text(source.source), tmp_path):
        for service in ("clickhouse", "kafka", "flink-jobserver"):
            awaited(lambda: _offsets(stack, source) == log.written)
            for process in _service(stack, service):
                process.kill()
            log.good(1000)
        awaited(lambda: _offsets(stack, source) == 4000)
    assert published(stack, source) == expected(4000)


def _offsets(settings: Settings, source: Catalog) -> int:
    try:
        return sum(frontier(connect(settings, settings.database(source.source)), source).values())
    except Exception:  # noqa: BLE001 - not there yet, or away
        return 0


@contextmanager
def _writing(log: Log, count: int) -> Iterator[None]:
    """Appends events in small runs beside what the block does."""

    def write() -> None:
        for _ in range(count // 500):
            log.good(500)
            time.sleep(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        writer.join()


def _service(settings: Settings, name: str) -> list[psutil.Process]:
    [found] = [each for each in status(settings) if each.name == name]
    assert found.pid is not None
    return [psutil.Process(found.pid)]


def _topic(settings: Settings, topic: str) -> list[tuple[bytes, dict[str, str]]]:
    """The values and headers of a topic's records."""
    consumer = kafka.consumer(settings)
    ends = kafka.log_offsets(settings, topic)
    found = []
    try:
        for partition, (begin, end) in ends.items():
            if end > begin:
                consumer.assign([speed_log.place(topic, partition, begin)])
                while len(found) < end - begin:
                    found += [m for m in consumer.consume(100, 1.0) if m.error() is None]
    finally:
        consumer.close()
    return [(m.value(), {name: value.decode() for name, value in m.headers()}) for m in found]
