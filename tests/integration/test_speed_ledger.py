"""The ledger's check on a running speed layer: silent while all is well, loud about what is planted, silent again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import speed_log
from speed_log import START_MS, Log, awaited, event, expected, published, rows, running

from infra import kafka
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from serving.status import Status, read_status
from speed_layer.published import frontier

pytestmark = pytest.mark.faults

RECORDS, PER_TRANSACTION = 24_000, 400


@pytest.fixture
def source(unique: str) -> Catalog:
    return speed_log.catalog(unique)


def test_only_a_planted_defect_raises_the_alarm(stack: Settings, source: Catalog, tmp_path: Path) -> None:
    """Blocks are whole and in part, with markers and with records of transactions that were taken back."""
    kafka.ensure_topics(stack, {source.topic: speed_log.PARTITIONS})
    with running(stack, speed_log.text(source.source), tmp_path):
        committed = _transactions(stack, source)
        ends = {number: end for number, (_, end) in kafka.log_offsets(stack, source.topic).items()}
        assert min(ends.values()) > 10_000
        assert sum(ends.values()) > committed + RECORDS // PER_TRANSACTION
        awaited(lambda: _reached(stack, source) == ends)
        awaited(lambda: _counted(stack, source) == committed, "nothing was judged")
        assert _status(stack, source).check.closes
        assert _status(stack, source).alarms == ()
        awaited(lambda: [lag.lag_offsets for lag in _status(stack, source).lags] == [0, 0], "the lag stays")

        with _removed(stack, source, "speed_events", "country = 'de'"):
            alarm = _alarm(stack, source)
            assert f"{expected(committed)['de']:,} fewer events than the ledger counts" in alarm
            assert not _status(stack, source).check.closes
        awaited(lambda: _status(stack, source).alarms == (), "the alarm was not taken back")
        assert _status(stack, source).check.closes

        with _removed(stack, source, "ledger", "topic_partition = 1 AND block = 0"):
            assert "offsets 0 to 10000 of partition 1" in _alarm(stack, source)
        awaited(lambda: _status(stack, source).alarms == (), "the alarm was not taken back")
    assert published(stack, source) == expected(committed)


def test_a_log_that_is_published_already_is_checked_all_the_same(stack: Settings, source: Catalog) -> None:
    Log(stack, source).good(300)
    speed_run(stack, source)
    assert _status(stack, source).check.closes

    with _removed(stack, source, "speed_events", "country = 'fr'"):
        speed_run(stack, source)
        assert "100 fewer events" in _alarm(stack, source)

    speed_run(stack, source)
    assert _status(stack, source).alarms == ()


def speed_run(settings: Settings, source: Catalog) -> None:
    from speed_layer.main import run  # noqa: PLC0415 - Beam takes seconds to import

    assert run(settings, source, until_drained=True) == 0


def _transactions(settings: Settings, source: Catalog) -> int:
    """Writes transactions over all partitions, every third of them in vain; returns how many events stand."""
    producer = kafka.producer(settings, {"transactional.id": source.source, "delivery.timeout.ms": 30_000})
    producer.init_transactions(30)
    committed = 0
    for turn, _ in enumerate(range(0, RECORDS, PER_TRANSACTION)):
        in_vain = turn % 3 == 2
        producer.begin_transaction()
        for number in range(committed, committed + PER_TRANSACTION):
            value = event(number, id=f"vain{turn}-{number}") if in_vain else event(number)
            place = number % speed_log.PARTITIONS
            producer.produce(source.topic, value, partition=place, timestamp=START_MS + number * 10)
        producer.flush()
        if in_vain:
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
            committed += PER_TRANSACTION
    return committed


@contextmanager
def _removed(settings: Settings, source: Catalog, table: str, which: str) -> Iterator[None]:
    """Takes rows out of a table by hand, and puts them back."""
    client = connect(settings, settings.database(source.source))
    client.command(f"CREATE TABLE saved ENGINE = Memory AS SELECT * FROM {table} FINAL WHERE {which}")
    assert rows(settings, source, "SELECT count() > 0 FROM saved") == [(1,)]
    client.command(f"ALTER TABLE {table} DELETE WHERE {which}", settings={"mutations_sync": 1})
    yield
    client.command(f"INSERT INTO {table} SELECT * FROM saved", settings={"insert_deduplicate": 0})
    client.command("DROP TABLE saved")


def _reached(settings: Settings, source: Catalog) -> dict[int, int]:
    try:
        return frontier(connect(settings, settings.database(source.source)), source)
    except Exception:  # noqa: BLE001 - not there yet
        return {}


def _status(settings: Settings, source: Catalog) -> Status:
    return read_status(connect(settings), settings.database(source.source))


def _counted(settings: Settings, source: Catalog) -> int:
    check = _status(settings, source).check
    return check.counted if check and not check.unread else 0


def _alarm(settings: Settings, source: Catalog) -> str:
    awaited(lambda: _status(settings, source).alarms != (), "there is no alarm")
    [alarm] = _status(settings, source).alarms
    return alarm.text
