"""Many dimension values: results stay the same with little memory, and an alarm names the dimension."""

import json
import random
from typing import Any

import polars as pl
import pytest
from merge_harness import Job, Row

from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from speed_layer.cardinality import Alarm, Limits, Told, alarm_rows

START = 1_700_000_000_000 // 3_600_000 * 3_600_000
TREE: dict[str, Any] = {
    "source": "shop",
    "topic": "events",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "key": "user",
    "allowed_lateness": "1h",
    "fields": {"user": "string", "country": "string"},
    "metrics": {
        "events": {"agg": "count", "by": ["country", "user"], "window": "tumbling 1m"},
        "users": {"agg": "distinct(user)", "by": ["country"], "window": "tumbling 1m"},
        "visits": {"agg": "count", "by": ["country"], "window": "session 10s"},
    },
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return parse_catalog(TREE, {}, "test")


def event(number: int, second: int = 0) -> Row:
    return {"ts": START + second * 1000, "user": f"u{number}", "country": ("de", "fr")[number % 2]}


@pytest.mark.parametrize("memory_bytes", [0, 5000])
def test_a_tiny_memory_changes_no_pane_and_no_session(catalog: Catalog, memory_bytes: int) -> None:
    chance = random.Random(memory_bytes)
    roomy, tight = Job(catalog), Job(catalog, limits=Limits(memory_bytes, buckets=2))
    for _ in range(6):
        events = [event(chance.randrange(9), chance.randrange(200)) for _ in range(12)]
        fails = chance.random() < 0.2
        ours, theirs = (job.bundle(events, fails_first=fails) for job in (roomy, tight))
        assert ours.panes.keys() == theirs.panes.keys()
        for name in ours.panes:
            assert _content(ours.panes[name]) == _content(theirs.panes[name])
        reached = START + chance.randrange(200) * 1000
        for job in (roomy, tight):
            job.advance(reached)
    assert roomy.sessions("visits") == tight.sessions("visits")


def test_a_memory_of_nothing_holds_nothing(catalog: Catalog) -> None:
    job = Job(catalog, limits=Limits(memory_bytes=0, buckets=2))
    job.bundle(event(n) for n in range(10))
    assert job.memory_rows == 0
    assert job.state_rows > 0


def test_a_slice_with_many_rows_raises_an_alarm_by_the_dimension_with_most_values(catalog: Catalog) -> None:
    job = Job(catalog, limits=Limits(alarm_rows=1000, buckets=2))
    assert job.bundle(event(n) for n in range(800)).alarms == []

    batch = job.bundle([*(event(n) for n in range(800, 1300)), event(0, second=60)])

    [alarm] = {(a.group_id, a.metrics, a.dimension, a.slice_start) for a in batch.alarms}
    assert alarm == ("1m:country:user", ("events",), "user", START)
    assert all(abs(a.rows - 1300) < 130 for a in batch.alarms)
    assert "`user`" in batch.alarms[0].text
    assert batch.panes["1m:country:user"]["slice_start"].n_unique() == 2


def test_an_old_crowded_slice_is_quiet_while_its_neighbours_change(catalog: Catalog) -> None:
    job = Job(catalog, limits=Limits(alarm_rows=1000, buckets=2))
    assert job.bundle(event(n) for n in range(1300)).alarms

    assert job.bundle([event(n, second=60) for n in range(10)]).alarms == []


def test_an_alarm_is_told_once_and_again_when_its_slice_has_doubled() -> None:
    told = Told(clock=lambda: 0.0)
    first, more, twice = (alarm(rows) for rows in (1000, 1999, 2000))

    assert told.fresh([first]) == [first]
    assert told.fresh([first]) == [first]  # not noted yet: its write may have failed
    told.note([first])
    assert told.fresh([first, more]) == []
    assert told.fresh([twice]) == [twice]
    assert told.fresh([alarm(1000, START + 60_000)]) == [alarm(1000, START + 60_000)]


def test_the_log_hears_of_a_group_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    told = Told(clock=lambda: now)
    for second in (0, 59, 60):
        now = float(second)
        told.note([alarm(1000, START + second)])
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "`user`" in caplog.text


def test_rows_of_the_table_say_what_the_alarm_says() -> None:
    [row] = alarm_rows([alarm(1000)]).iter_rows(named=True)
    assert (row["metrics"], row["dimension"], row["rows"]) == (["events"], "user", 1000)
    assert row["slice_start"].timestamp() * 1000 == START


def alarm(rows: int, start: int = START) -> Alarm:
    return Alarm("1m:country:user", ("events",), ("country", "user"), "user", rows, start)


def _content(frame: pl.DataFrame) -> list[str]:
    return sorted(json.dumps(row, default=str, sort_keys=True) for row in frame.to_dicts())
