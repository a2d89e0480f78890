"""Alerts on real Flink, Kafka and ClickHouse: each breach is told once, in its topic and in the table."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import alert_log
import polars as pl
import pytest
from alert_log import Sent
from beam_workers import workers
from confluent_kafka.admin import ConfigResource

from batch_layer.run import run as batch
from infra.clickhouse import connect
from infra.kafka import admin
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import COUNTED, DUPLICATE
from reconciliation.alerts import alert_days
from reconciliation.reconcile import reader, reconcile
from speed_layer.main import run
from speed_layer.side_outputs import LARGEST_BYTES

pytestmark = pytest.mark.faults

WAIT_S = 240.0


@pytest.fixture
def source(unique: str) -> Catalog:
    return alert_log.catalog(unique)


def test_history_raises_exactly_its_breaches_and_a_restart_raises_none_again(stack: Settings, source: Catalog) -> None:
    first = alert_log.flaws(2, alert_log.records(1, 4000))
    alert_log.append(stack, source, first)
    run(stack, source, until_drained=True)
    _assert_told_once(stack, source, first)

    second = alert_log.records(3, 1500, first[-1][1] + 1000, "f")
    alert_log.append(stack, source, second)
    run(stack, source, until_drained=True)
    _assert_told_once(stack, source, first + second)
    for alert in source.alerts:
        [body, *_] = alert_log.messages(stack, alert)
        assert (body["alert"], body["source"], body["when"]) == (alert.name, source.source, alert.when)
        assert set(body["dims"]) == set(alert.by)
        assert body["breached_at"].endswith("Z")
        assert body["evidence"]
        assert body["value"] < body["threshold"] if alert.kind == "level" else body["value"] > body["threshold"]


def test_batch_says_how_many_live_alerts_were_due(stack: Settings, source: Catalog) -> None:
    sent = alert_log.flaws(2, alert_log.records(11, 2000, alert_log.START_MS + 600_000))
    closing = alert_log.records(12, 1, alert_log.START_MS + 2 * alert_log.DAY_MS, "last")
    alert_log.append(stack, source, sent + closing)
    run(stack, source, until_drained=True)
    day = datetime.fromtimestamp(alert_log.START_MS / 1000, UTC).date()
    batch(stack, source, [day])

    found = alert_days(reader(connect(stack)), source, stack.database(source.source), reconcile(stack, source, [day]))

    events = alert_log.events_of(source, sent)
    live = alert_log.ids(_expected(source, sent))
    due = alert_log.ids(alert_log.due(source, events.filter(pl.col("disposition") != DUPLICATE)))
    assert {one.alert: (one.live, one.due) for one in found} == {a: (len(live[a]), len(due[a])) for a in live}
    for one in found:
        assert one.matched >= len(live[one.alert] & due[one.alert])
        assert one.precision is not None
        assert one.recall is not None
        assert {why for _, why in (*one.missed, *one.false)} <= {"late"}
    assert any(one.missed for one in found), "a late event must have made a breach"


def test_a_replay_from_the_beginning_raises_none_again(stack: Settings, source: Catalog) -> None:
    sent = alert_log.records(5, 2000)
    alert_log.append(stack, source, sent)
    run(stack, source, until_drained=True)
    connect(stack, stack.database(source.source)).command("TRUNCATE TABLE speed_progress")

    run(stack, source, until_drained=True)

    _assert_told_once(stack, source, sent)


def test_what_was_sent_but_not_written_is_not_sent_again(stack: Settings, source: Catalog) -> None:
    sent = alert_log.records(7, 2000)
    alert_log.append(stack, source, sent)
    run(stack, source, until_drained=True)
    client = connect(stack, stack.database(source.source))
    client.command("TRUNCATE TABLE speed_progress")
    client.command("TRUNCATE TABLE alerts")

    run(stack, source, until_drained=True)

    _assert_told_once(stack, source, sent)


def test_an_alert_of_very_many_bytes_is_told(stack: Settings, source: Catalog) -> None:
    sent = alert_log.records(14, 600, prefix="e" * 60_000)
    alert_log.append(stack, source, sent)

    run(stack, source, until_drained=True)

    _assert_told_once(stack, source, sent)
    broker = admin(stack)
    for alert in source.alerts:
        config = ConfigResource(ConfigResource.Type.TOPIC, alert.topic)
        [described] = broker.describe_configs([config]).values()
        assert int(described.result()["max.message.bytes"].value) == LARGEST_BYTES
    bodies = [body for alert in source.alerts for body in alert_log.messages(stack, alert)]
    assert any(len(body["evidence"]) < body["events"] for body in bodies)


def test_live_alerts_are_told_once_though_workers_are_killed(stack: Settings, source: Catalog, tmp_path: Path) -> None:
    # sent a little ahead of the clock, so that however slow the machine is nothing of it is history yet
    soon = time.time_ns() // 1_000_000 + 240_000
    sent = alert_log.records(9, 600, soon, "live", 50, keyed=True)
    alert_log.append(stack, source, sent[:300])
    with _speed(stack, source, tmp_path):
        _await(lambda: _told(stack, source) >= _due(source, sent[:300]) > 0)
        for process in workers(stack):
            process.kill()
        alert_log.append(stack, source, sent[300:])
        _await(lambda: _told(stack, source) >= _due(source, sent))
        assert sum(map(len, alert_log.ids(_expected(source, sent)).values())) == _due(source, sent)
    _assert_told_once(stack, source, sent)


def _expected(source: Catalog, sent: list[Sent]) -> dict[str, pl.DataFrame]:
    return alert_log.due(source, alert_log.events_of(source, sent).filter(pl.col("disposition") == COUNTED))


def _assert_told_once(settings: Settings, source: Catalog, sent: list[Sent]) -> None:
    expected = {name: sorted(found) for name, found in alert_log.ids(_expected(source, sent)).items()}
    assert all(expected.values()), "the log must breach every alert"
    assert alert_log.stored(settings, source) == expected
    told = {a.name: sorted(body["alert_id"] for body in alert_log.messages(settings, a)) for a in source.alerts}
    assert told == expected


def _due(source: Catalog, sent: list[Sent]) -> int:
    return sum(map(len, alert_log.ids(_expected(source, sent)).values()))


def _told(settings: Settings, source: Catalog) -> int:
    try:
        return sum(map(len, alert_log.stored(settings, source).values()))
    except Exception:  # noqa: BLE001 - not there yet
        return 0


def _await(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline, "was not reached in time"
        time.sleep(0.1)


@contextmanager
def _speed(settings: Settings, source: Catalog, directory: Path) -> Iterator[None]:
    """A speed layer in a process of its own, stopped as a supervisor stops it."""
    path = alert_log.write_catalog(source.source, directory)
    command = [sys.executable, "-m", "speed_layer", "--catalog", str(path)]
    process = subprocess.Popen(command, env={**os.environ, **settings.environ()})
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0
