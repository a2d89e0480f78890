"""The batch layer on a real broker, Spark and ClickHouse."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from batch_log import CLOSING_TIME, DAY_MS, DAYS, FIRST_DAY, START, produce, records, write_catalog
from clickhouse_connect.driver.client import Client
from confluent_kafka import TopicPartition

from batch_layer.job import spark_session
from batch_layer.refusals import ExpiredError, OpenDayError
from batch_layer.run import PartitionResult, run
from infra import kafka as broker
from infra.clickhouse import connect, query_frame
from infra.settings import Settings
from metrics.catalog import Catalog, Metric
from metrics.reference import Answer, Cell, Key, Record, answer, parse
from serving.presented import presented

Run = Callable[..., list[PartitionResult]]


@pytest.fixture(scope="module")
def services(kafka: Settings, clickhouse: Settings) -> Settings:
    assert kafka == clickhouse
    return clickhouse


@pytest.fixture(scope="module")
def run_in_one_session(services: Settings) -> Iterator[Run]:
    """`run`, with one Spark session for all tests: starting one costs more than a run."""
    with ExitStack() as stack:
        session = stack.enter_context(spark_session(services, 10_000))
        yield lambda catalog, days, **options: run(
            services, catalog, days, session_of=lambda *_: nullcontext(session), **options
        )


@pytest.fixture
def database(services: Settings, unique: str) -> str:
    return services.database(unique)


def client_of(settings: Settings, catalog: Catalog) -> Client:
    return connect(settings, settings.database(catalog.source))


Shown = dict[Key, tuple[Any, ...]]
"""By key the end of the window, events, value and, of a session, its length."""


def shown(client: Client, metric: Metric, grain: str, sql: str) -> Shown:
    """The windows that a SELECT gives."""
    dimensions = [*(["session_key"] if metric.session else []), *metric.by]
    cells: Shown = {}
    frame = query_frame(client, sql).with_columns(pl.col("window_start", "window_end").dt.epoch("ms"))
    for row in frame.to_dicts():
        key = (metric.name, grain, row["window_start"], tuple(row[name] for name in dimensions))
        assert key not in cells, "a window stands twice"
        length = row["length_ms"] if metric.session else None
        cells[key] = (row["window_end"], row["events"], plain(row["value"]), length)
    return cells


def wanted(cells: dict[Key, Cell], metric: Metric, grain: str, days: list[date]) -> Shown:
    """The windows of the reference that lie in the days, sessions where they end."""
    begin, end = (START + (day - FIRST_DAY).days * DAY_MS for day in (days[0], days[-1] + timedelta(days=1)))
    return {
        key: (cell.end, cell.events, plain(cell.value), cell.length if metric.session else None)
        for key, cell in cells.items()
        if key[:2] == (metric.name, grain) and cell.end <= end and begin <= (cell.end - 1 if metric.session else key[2])
    }


def plain(value: Any) -> Any:
    """A value as it compares, be it of the reference or of a table; of a float what any order of adding gives."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, list):
        return [tuple(entry.values()) if isinstance(entry, dict) else entry for entry in value]
    return value


def dispositions_of(tree: dict[str, Any], log: list[Record], truth: Answer, day: date) -> Counter[str]:
    start = START + (day - FIRST_DAY).days * DAY_MS
    found: Counter[str] = Counter()
    for record in log:
        event = parse(tree, record)
        moment = record.record_time if event is None else event["event_time"]
        if start <= moment < start + DAY_MS:
            found[truth.dispositions[record.topic_partition, record.offset]] += 1
    return found


def test_every_published_number_is_that_of_the_reference(
    services: Settings, run_in_one_session: Run, unique: str, tmp_path: Path
) -> None:
    tree, catalog, _ = write_catalog(unique, tmp_path)
    log = records(seed=1, count=6_000)
    produce(services, catalog, log)
    truth = answer(tree, log)

    results = run_in_one_session(catalog, DAYS)

    assert [result.partition for result in results] == DAYS
    assert all(result.published for result in results)
    client = client_of(services, catalog)
    for metric in catalog.metrics:
        for grain in metric.grains:
            exact = shown(client, metric, grain, f"SELECT * FROM {metric.name}_{grain}__batch")
            certain = wanted(truth.exact, metric, grain, DAYS)
            assert {key: exact.get(key) for key in certain} == certain
            assert bool(certain) == (grain != "global")
            if metric.agg.exact:
                states = shown(
                    client, metric, grain, presented(metric, grain, f"(SELECT * FROM expected_{metric.name})")
                )
                certain = wanted(truth.expected, metric, grain, DAYS)
                assert {key: states.get(key) for key in certain} == certain
        if not metric.agg.exact:
            assert sketches(client, metric) == sketches_of(truth, metric)

    for result in results:
        frame = query_frame(
            client,
            "SELECT manifest, events FROM batch_runs WHERE partition = {day:Date} AND status = 'complete'",
            {"day": result.partition},
        )
        manifest = json.loads(frame["manifest"][0])
        found = dispositions_of(tree, log, truth, result.partition)
        assert {name: n for name, n in manifest["dispositions"].items() if n} == found
        assert result.dead_letters == found["dead_letter"] > 0
        exact = sum(
            cell.events
            for key, cell in truth.exact.items()
            if key[:3] == ("events", "1d", START + (result.partition - FIRST_DAY).days * DAY_MS)
        )
        assert result.events == manifest["events"] == exact
        assert found["late"] > 0 and found["id_conflict"] > 0
        # some copies lie beyond the horizon or in another topic partition, so that only the batch layer sees them
        assert result.duplicates > found["duplicate"] > 0
        for read in manifest["ranges"]:
            disposed = sum(read[name] for name in ("counted", "late", "duplicate", "id_conflict", "dead_letter"))
            assert read["records"] == disposed == read["end"] - read["start"] > 0
        blocks = manifest["ledger"]
        assert sum(block["records"] for block in blocks) == len(log)

    exceptions = query_frame(client, "SELECT topic_partition, offset, disposition FROM batch_exceptions")
    places = {(row["topic_partition"], row["offset"]): row["disposition"] for row in exceptions.to_dicts()}
    assert len(places) == exceptions.height
    assert all(truth.dispositions[place] == disposition for place, disposition in places.items())
    assert len(places) == sum(
        n for day in DAYS for name, n in dispositions_of(tree, log, truth, day).items() if name != "counted"
    )


def sketches(client: Client, metric: Metric) -> dict[Key, Any]:
    """The expected sketches of slices or sessions."""
    time = "window_start" if metric.session else "slice_start"
    frame = query_frame(client, f"SELECT * FROM expected_{metric.name}").with_columns(pl.col(time).dt.epoch("ms"))
    dimensions = [*(["session_key"] if metric.session else []), *metric.by]
    state = metric.agg.state[0].name
    return {
        (metric.name, metric.grains[0], row[time], tuple(row[name] for name in dimensions)): {
            entry["key"]: entry["value"] for entry in row[state]
        }
        for row in frame.to_dicts()
    }


def sketches_of(truth: Answer, metric: Metric) -> dict[Key, Any]:
    """The reference's sketches of the smallest grain, which is the slice of every such metric here."""
    inside = wanted(truth.expected, metric, metric.grains[0], DAYS)
    return {key: truth.expected[key].registers or truth.expected[key].buckets for key in inside}


def test_the_three_readings_of_a_window_differ_by_their_events(
    services: Settings, run_in_one_session: Run, unique: str, tmp_path: Path
) -> None:
    _, catalog, _ = write_catalog(unique, tmp_path)
    moment = START + 3 * 60_000

    def event(offset: int, name: str, record_time: int, amount: str, topic_partition: int = 0) -> Record:
        body = {"id": name, "ts": moment, "kind": "purchase", "user": name, "country": "DE", "amount": amount}
        return Record(topic_partition, offset, record_time, json.dumps(body).encode())

    log = [
        event(0, "on time", moment, "10.00"),
        event(1, "late", moment + 2 * 3_600_000, "5.00"),
        event(2, "late", moment + 2 * 3_600_000, "5.00"),
        event(0, "on time", moment, "10.00", topic_partition=1),
        Record(2, 0, CLOSING_TIME, b"{}"),
    ]
    produce(services, catalog, log)
    run_in_one_session(catalog, [FIRST_DAY])
    frame = query_frame(
        client_of(services, catalog), "SELECT reading, events, total FROM batch_revenue ORDER BY reading"
    )
    assert frame.rows() == [
        ("counted", 2, Decimal("20.00")),
        ("exact", 2, Decimal("15.00")),
        ("with_late", 3, Decimal("25.00")),
    ]


def test_a_day_without_events_is_published_with_no_rows_where_the_log_covers_it(
    services: Settings, run_in_one_session: Run, unique: str, tmp_path: Path
) -> None:
    _, catalog, _ = write_catalog(unique, tmp_path)
    log = [r for r in records(seed=2, count=300) if not START + DAY_MS <= r.record_time < START + 2 * DAY_MS + 86_000]
    log = [Record(0, offset, r.record_time, r.value) for offset, r in enumerate(r for r in log if late_free(r))]
    produce(services, catalog, log)
    results = run_in_one_session(catalog, DAYS)
    assert [result.events > 0 for result in results] == [True, False, True]
    client = client_of(services, catalog)
    published = query_frame(client, "SELECT partition FROM publications ORDER BY partition")["partition"].to_list()
    assert published == DAYS
    assert query_frame(client, "SELECT DISTINCT partition FROM batch_events ORDER BY 1")["partition"].to_list() == [
        DAYS[0],
        DAYS[2],
    ]
    manifest = json.loads(
        query_frame(
            client,
            "SELECT manifest FROM batch_runs WHERE status = 'complete' AND partition = {day:Date}",
            {"day": DAYS[1]},
        )["manifest"][0]
    )
    assert manifest["events"] == 0 and sum(read["records"] for read in manifest["ranges"]) > 0


def late_free(record: Record) -> bool:
    """Whether a record is an event of about its own time."""
    try:
        return abs(json.loads(record.value or b"")["ts"] - record.record_time) < 10_000
    except (ValueError, TypeError, KeyError):
        return False


def test_a_second_run_publishes_the_same_values_under_its_own_name(
    services: Settings, run_in_one_session: Run, unique: str, tmp_path: Path
) -> None:
    _, catalog, _ = write_catalog(unique, tmp_path)
    produce(services, catalog, records(seed=3, count=2_000))
    first = run_in_one_session(catalog, DAYS)
    client = client_of(services, catalog)
    tables = [f"{layer}_{metric.name}" for metric in catalog.metrics for layer in ("batch", "expected")]

    def rows(run_id: str, days: list[date] = DAYS) -> dict[str, list[str]]:
        sql = "SELECT * EXCEPT run_id FROM {} WHERE run_id = {{run_id:String}} AND has({{days:Array(Date)}}, partition)"
        values = {"run_id": run_id, "days": days}
        return {
            table: sorted(map(repr, query_frame(client, sql.format(table), values).rows()))
            for table in [*tables, "batch_exceptions"]
        }

    before = views(client, catalog)
    second = run_in_one_session(catalog, DAYS)
    assert first[0].run_id < second[0].run_id
    assert rows(first[0].run_id) == rows(second[0].run_id)
    assert views(client, catalog) == before != {}
    current = query_frame(client, "SELECT partition, argMax(run_id, published_at) AS run FROM publications GROUP BY 1")
    assert set(current["run"]) == {second[0].run_id}

    alone = run_in_one_session(catalog, [DAYS[1]])
    assert rows(alone[0].run_id) == rows(first[0].run_id, [DAYS[1]])
    assert views(client, catalog) == before


def views(client: Client, catalog: Catalog) -> dict[str, list[tuple[Any, ...]]]:
    """What readers see of the batch layer, without the time of its publication."""
    found = {}
    for metric in catalog.metrics:
        for grain in metric.grains:
            frame = query_frame(client, f"SELECT * EXCEPT as_of FROM {metric.name}_{grain}__batch")
            found[f"{metric.name}_{grain}"] = sorted((tuple(map(plain, row)) for row in frame.rows()), key=repr)
    return found


def test_expired_offsets_are_refused_saying_from_when_to_when_the_log_reaches(
    services: Settings, run_in_one_session: Run, unique: str, tmp_path: Path
) -> None:
    _, catalog, _ = write_catalog(unique, tmp_path)
    log = records(seed=4, count=900)
    produce(services, catalog, log)
    cut = next(r for r in log if r.topic_partition == 1 and r.record_time > START + 6 * 3_600_000)
    admin = broker.admin(services)
    deleted = admin.delete_records([TopicPartition(catalog.topic, 1, cut.offset)])
    assert [future.result(30).low_watermark for future in deleted.values()] == [cut.offset]

    with pytest.raises(ExpiredError) as refused:
        run_in_one_session(catalog, DAYS)

    message = str(refused.value)
    assert f"offsets that day {FIRST_DAY} needs have expired from topic `{catalog.topic}`" in message
    assert f"partition 1 begins at offset {cut.offset}" in message
    assert "it reaches from 2026-03-01T06:" in message and "to 2026-03-04T02:00:00Z" in message
    assert "choose days from 2026-03-02 to 2026-03-04, or" in message
    assert [result.published for result in run_in_one_session(catalog, DAYS[1:])] == [True, True]


def test_an_open_day_is_refused(services: Settings, run_in_one_session: Run, unique: str, tmp_path: Path) -> None:
    _, catalog, _ = write_catalog(unique, tmp_path)
    produce(services, catalog, records(seed=5, count=30))
    today = datetime.now(UTC).date()
    with pytest.raises(OpenDayError, match=f"day {today} is not closed"):
        run_in_one_session(catalog, [DAYS[2], today])
    assert run_in_one_session(catalog, [today], allow_open=True)[0].published
    written = query_frame(
        connect(services, services.database(catalog.source)),
        "SELECT manifest FROM batch_runs WHERE status = 'complete'",
    )
    assert json.loads(written["manifest"][0])["closed"] is False


def test_a_run_killed_while_it_writes_leaves_the_views_as_they_were(
    services: Settings, run_in_one_session: Run, unique: str, tmp_path: Path
) -> None:
    _, catalog, path = write_catalog(unique, tmp_path)
    produce(services, catalog, records(seed=6, count=3_000))
    (first, *_) = run_in_one_session(catalog, DAYS)
    client = client_of(services, catalog)
    before = views(client, catalog)
    command = [sys.executable, "-m", "batch_layer", "--catalog", str(path), "--json"]
    command += ["--from", DAYS[0].isoformat(), "--to", DAYS[-1].isoformat()]
    process = subprocess.Popen(
        command, env=os.environ | services.environ(), start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        written = f"SELECT count() AS n FROM batch_events WHERE run_id != '{first.run_id}'"
        deadline = time.monotonic() + 300
        while query_frame(client, written)["n"][0] == 0:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run wrote nothing"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    assert query_frame(client, "SELECT DISTINCT run_id FROM publications")["run_id"].to_list() == [first.run_id]
    assert views(client, catalog) == before
    left = query_frame(client, "SELECT DISTINCT status FROM batch_runs WHERE run_id != {r:String}", {"r": first.run_id})
    assert left["status"].to_list() == ["running"]


def test_a_dry_run_prints_the_plan_and_makes_no_run(services: Settings, unique: str, tmp_path: Path) -> None:
    _, catalog, path = write_catalog(unique, tmp_path)
    log = records(seed=7, count=300)
    produce(services, catalog, log)
    command = [sys.executable, "-m", "batch_layer", "--catalog", str(path), "--dry-run", "--json"]
    command += ["--from", DAYS[0].isoformat(), "--to", DAYS[0].isoformat()]
    done = subprocess.run(
        command, env=os.environ | services.environ(), capture_output=True, text=True, check=True, timeout=120
    )
    printed = json.loads(done.stdout)
    assert printed["partitions"] == [
        {
            "partition": "2026-03-01",
            "run_id": None,
            "events": None,
            "duplicates": None,
            "dead_letters": None,
            "published": False,
        }
    ]
    assert sum(read["end"] - read["start"] for read in printed["ranges"]) == len(log)
    client = connect(services, services.database(catalog.source))
    assert query_frame(client, "SELECT count() AS n FROM batch_runs")["n"].to_list() == [0]
    assert query_frame(client, "SELECT sum(records) AS n FROM log_blocks FINAL")["n"].to_list() == [len(log)]
