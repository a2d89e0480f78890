"""What a batch run reads of the log, and of its archive: found, proven, and the same bytes from either."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars.selectors as cs
import pytest
import yaml
from batch_log import DAY_MS, DAYS, catalog_tree, produce, records, write_catalog
from clickhouse_connect.driver.client import Client
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from pyspark.sql import SparkSession

from batch_layer.again import NotRepeatableError, repeat, try_out
from batch_layer.archive import ArchiveError
from batch_layer.archiving import Archiver, archiver_of, catch_up, compare
from batch_layer.history import RevertError, editions, revert
from batch_layer.job import spark_session
from batch_layer.planning import plan_days, refresh_index
from batch_layer.publish import PublishedMeanwhileError, WriteError, publish, published
from batch_layer.refusals import ExpiredError, LostError
from batch_layer.retention import prune
from batch_layer.run import PartitionResult, run
from batch_layer.stale import published_days, stale_days
from infra import kafka as broker
from infra.catalog_file import load_catalog
from infra.clickhouse import connect, query_frame, quote
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.reference import Record
from metrics.window import to_epoch_ms
from reconciliation.reconcile import reconcile
from serving.query import QueryError, build, rows

FIRST = date(2026, 3, 1)
START = to_epoch_ms(datetime(2026, 3, 1, tzinfo=UTC))
HOURLY, HOURS = 500, 72
"""Events an hour in one topic partition, so that a day is more than a block of the index."""


@pytest.fixture(scope="module")
def services(kafka: Settings, clickhouse: Settings) -> Settings:
    assert kafka == clickhouse
    return clickhouse


@pytest.fixture(scope="module")
def session(services: Settings) -> Iterator[SparkSession]:
    with spark_session(services, 10_000) as opened:
        yield opened


class Source:
    """A source of its own, and the batch layer over it."""

    def __init__(self, settings: Settings, session: SparkSession, catalog: Catalog, path: Path) -> None:
        self.settings, self.catalog, self.path = settings, catalog, path
        self.session = session

    def run(self, *days: date) -> list[PartitionResult]:
        return run(self.settings, self.catalog, days, session_of=self.session_of)

    def session_of(self, *_: object) -> AbstractContextManager[SparkSession]:
        return nullcontext(self.session)

    def shown(self, *left_out: str) -> dict[str, list[str]]:
        """What the batch layer shows, by metric and grain, but for some columns."""
        client = self.client
        views = {f"{m.name}_{grain}": f"{m.name}_{grain}__batch" for m in self.catalog.shown for grain in m.grains}
        sql = "SELECT * EXCEPT as_of FROM {}"
        found = {name: query_frame(client, sql.format(quote(view))) for name, view in views.items()}
        # whoever merges states of floats merges them in another order each time
        same = cs.float().round_sig_figs(9)
        return {
            name: sorted(map(repr, frame.with_columns(same).drop(left_out, strict=False).rows()))
            for name, frame in found.items()
        }

    def events_of(self, then: datetime) -> Any:
        """How many events the first day had, as was published by then; None: it was not."""
        asked = build(self.catalog, "events", "1d", end="2026-03-02", as_of=then.isoformat())
        found = rows(self.client, self.settings.database(self.catalog.source), asked)
        return found[0].value if found else None

    @property
    def client(self) -> Client:
        return connect(self.settings, self.settings.database(self.catalog.source))

    @property
    def archiver(self) -> Archiver:
        return archiver_of(self.settings, self.catalog)[0]

    def offsets(self) -> dict[int, tuple[int, int]]:
        return broker.log_offsets(self.settings, self.catalog.topic)

    def compared(self) -> dict[int, list[int]]:
        copied = [one for mine in self.archiver.archive.stretches().values() for one in mine]
        return compare(self.archiver, copied, self.offsets())

    def send(self, *values: tuple[int, bytes]) -> None:
        """Appends records of (timestamp, value) to the first topic partition."""
        made = ({"partition": 0, "timestamp": time, "value": value} for time, value in values)
        broker.produce_all(broker.producer(self.settings), self.catalog.topic, made)

    def manifest(self, day: date, run_id: str) -> dict[str, Any]:
        sql = (
            "SELECT manifest FROM batch_runs "
            "WHERE partition = {day:Date} AND run_id = {run:String} AND status = 'complete'"
        )
        return dict(json.loads(query_frame(self.client, sql, {"day": day, "run": run_id})["manifest"].item()))

    def rows(self, run_id: str, day: date) -> dict[str, list[str]]:
        """All that a run wrote of a day."""
        tables = [f"{layer}_{metric.name}" for metric in self.catalog.metrics for layer in ("batch", "expected")]
        sql = "SELECT * EXCEPT run_id FROM {} WHERE run_id = {{run:String}} AND partition = {{day:Date}}"
        return {
            table: sorted(map(repr, query_frame(self.client, sql.format(table), {"run": run_id, "day": day}).rows()))
            for table in [*tables, "batch_exceptions"]
        }

    def stale(self) -> list[tuple[date, str]]:
        index = refresh_index(self.settings, self.catalog)
        return [(one.day, one.why) for one in stale_days(index, published_days(self.client))]

    def expire(self, topic_partition: int, before: int) -> None:
        admin = broker.admin(self.settings)
        place = TopicPartition(self.catalog.topic, topic_partition, before)
        (deleted,) = admin.delete_records([place]).values()
        assert deleted.result(30).low_watermark == before


@pytest.fixture
def source(services: Settings, session: SparkSession, unique: str, tmp_path: Path) -> Source:
    _, catalog, path = write_catalog(unique, tmp_path)
    settings = services.model_copy(update={"archive_url": str(tmp_path / "archive")})
    return Source(settings, session, catalog, path)


@pytest.fixture
def small(source: Source) -> Source:
    """The same with a few metrics, where what they are does not matter."""
    tree = catalog_tree(source.catalog.source)
    tree["metrics"] = {name: tree["metrics"][name] for name in ("events", "revenue", "visits")}
    source.path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return Source(source.settings, source.session, load_catalog(source.path), source.path)


def event(name: str, time: int) -> bytes:
    body = {"id": name, "ts": time, "kind": "purchase", "user": f"u{hash(name) % 7}", "amount": "1.25"}
    return json.dumps(body).encode()


def hours(count: int = HOURS) -> Iterator[tuple[int, bytes]]:
    """Events in the order of time, and one long after, by which the days are closed."""
    for number in range(count * HOURLY):
        time = START + number * 3_600_000 // HOURLY
        yield time, event(f"e{number}", time)
    time = START + (count + 2) * 3_600_000
    yield time, event("last", time)


def test_a_run_reads_where_its_day_lies_and_what_came_late_for_it_wherever_that_stands(small: Source) -> None:
    broker.ensure_topics(small.settings, {small.catalog.topic: 1}, {"retention.ms": "-1"})
    small.send(*hours())
    (first,) = small.run(FIRST)
    assert first.events == 24 * HOURLY
    (read,) = small.manifest(FIRST, first.run_id)["ranges"]
    assert (read["start"], read["log_begin"], read["log_end"]) == (0, 0, HOURS * HOURLY + 1)
    assert 24 * HOURLY <= read["end"] <= 2 * 10_000
    third = FIRST + timedelta(days=2)
    (other,) = small.run(third)
    (read,) = small.manifest(third, other.run_id)["ranges"]
    # what sessions and alerts of the day may reach begins seven hours before it
    assert 2 * 10_000 <= read["start"] <= 41 * HOURLY and read["end"] == HOURS * HOURLY + 1
    assert small.stale() == [
        (date(2026, 3, 2), "never published; the log has 12000 events and 0 dead letters"),
        (date(2026, 3, 4), "never published; the log has 1 events and 0 dead letters"),
    ]

    late = (START + 75 * 3_600_000, event("late", START + 5))
    small.send(late, (START + 76 * 3_600_000, event("e7", START + 7 * 7_200)))
    assert small.stale()[0] == (FIRST, f"since run `{first.run_id}` 2 events and 0 dead letters came")
    (again,) = small.run(FIRST)
    assert again.events == 24 * HOURLY + 1
    manifest = small.manifest(FIRST, again.run_id)
    assert manifest["ranges"][0]["end"] == HOURS * HOURLY + 3
    assert manifest["indexed"] == {"events": 24 * HOURLY + 2, "dead_letters": 0}
    assert FIRST not in [day for day, _ in small.stale()]


def test_a_run_that_reads_other_events_than_the_index_counts_is_not_published(small: Source) -> None:
    produce(small.settings, small.catalog, records(seed=11, count=600))
    (first,) = small.run(DAYS[0])
    small.client.command(
        "INSERT INTO log_blocks SELECT * REPLACE (mapApply((hour, n) -> (hour, n + 1), events) AS events) "
        "FROM log_blocks FINAL WHERE topic_partition = 1"
    )
    with pytest.raises(WriteError, match=f"a run of {DAYS[0]} must read the .* nothing was published"):
        small.run(DAYS[0])
    assert [one.run_id for one in editions(small.client, DAYS[0])] == [first.run_id]
    failed = query_frame(small.client, "SELECT run_id FROM batch_runs WHERE status = 'failed'")
    assert failed.height == 1


def test_a_topic_that_was_made_anew_or_is_compacted_is_refused(small: Source) -> None:
    topic, admin = small.catalog.topic, broker.admin(small.settings)
    produce(small.settings, small.catalog, records(seed=12, count=300))
    small.run(DAYS[0])
    (gone,) = admin.delete_topics([topic]).values()
    gone.result(30)
    produce(small.settings, small.catalog, records(seed=13, count=200))
    with pytest.raises(LostError, match=rf"topic `{topic}` was made anew: .* {DAYS[0]} had events in a former one"):
        small.run(DAYS[0])
    assert len(editions(small.client, DAYS[0])) == 1
    entry = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(30)
    with pytest.raises(LostError, match=r"its `cleanup.policy` is compact"):
        small.run(DAYS[1])


def test_a_day_from_the_archive_has_the_bytes_that_it_had_from_the_log(source: Source) -> None:
    sent = records(seed=14, count=3_000)
    produce(source.settings, source.catalog, sent)
    before = {result.partition: result for result in source.run(*DAYS)}
    first = catch_up(source.archiver, source.offsets())
    assert (first.records, first.gaps) == (len(sent), ())
    assert catch_up(source.archiver, source.offsets()).records == 0
    assert source.compared() == {}

    # all of the first day is gone from one partition, a part of the second from another
    source.expire(0, _first_offset(sent, 0, START + DAY_MS + 9 * 3_600_000))
    source.expire(1, _first_offset(sent, 1, START + DAY_MS // 2))
    source.client.command("TRUNCATE TABLE log_blocks")
    after = {result.partition: result for result in source.run(*DAYS)}
    for day in DAYS:
        assert source.rows(after[day].run_id, day) == source.rows(before[day].run_id, day)
        old, new = (source.manifest(day, runs[day].run_id) for runs in (before, after))
        same = old.keys() - {"run_id", "wall_seconds", "cpu_seconds", "ranges"}
        assert {name: new[name] for name in same} == {name: old[name] for name in same}
        assert new["ranges"][0]["begin"] == 0 < new["ranges"][0]["log_begin"]
    assert source.compared() == {}


def test_an_archive_with_a_gap_or_with_damage_is_refused_and_said(small: Source, tmp_path: Path) -> None:
    sent = records(seed=15, count=900)
    produce(small.settings, small.catalog, sent)
    small.expire(0, 20)
    copied = catch_up(small.archiver, small.offsets())
    assert copied.gaps == ()
    small.expire(0, _first_offset(sent, 0, START + DAY_MS))
    with pytest.raises(ExpiredError):
        small.run(DAYS[0])
    assert small.run(DAYS[1])[0].published

    file = min((tmp_path / "archive").rglob("sent=2026-03-01/*.parquet"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    done = command(small, "archive", "verify", "--json")
    assert done.returncode == 1
    assert "is damaged at `sent=2026-03-01/" in json.loads(done.stdout)["error"]
    with pytest.raises(ArchiveError, match="is damaged"):
        small.compared()


def test_of_two_runs_of_a_day_one_is_published_and_the_other_is_told(small: Source) -> None:
    produce(small.settings, small.catalog, records(seed=16, count=300))
    (first,) = small.run(DAYS[0])
    known = published(small.client, [DAYS[0]])
    publish(small.client, "winner", known, small.catalog)
    with pytest.raises(PublishedMeanwhileError) as refused:
        publish(small.client, "loser", known, small.catalog)
    assert str(refused.value) == (
        f"{DAYS[0]} was published by run `winner` while run `loser` computed it. nothing of the latter is shown of "
        "that day; run it again if it is to replace the other"
    )
    assert [one.run_id for one in editions(small.client, DAYS[0])] == [first.run_id, "winner"]


def test_an_older_run_can_be_shown_again(small: Source) -> None:
    produce(small.settings, small.catalog, records(seed=17, count=300))
    with pytest.raises(RevertError, match="was never published"):
        small.run(DAYS[1])
        revert(small.client, DAYS[0])
    (first,) = small.run(DAYS[0])
    with pytest.raises(RevertError, match="no other run than"):
        revert(small.client, DAYS[0])
    small.send((START + 80 * 3_600_000, event("late", START + 5)))
    (second,) = small.run(DAYS[0])
    shown = "SELECT sum(value) AS n, min(as_of) AS at FROM events_1d__batch WHERE window_start = '2026-03-01'"
    assert query_frame(small.client, shown)["n"].item() == second.events == first.events + 1

    done = command(small, "publish", "revert", "--partition", str(DAYS[0]), "--json")
    assert json.loads(done.stdout) == {"partition": str(DAYS[0]), "before": second.run_id, "now": first.run_id}
    assert query_frame(small.client, shown)["n"].item() == first.events
    listed = json.loads(command(small, "publish", "list", "--partition", str(DAYS[0]), "--json").stdout)
    runs = [(one["run_id"], one["current"]) for one in listed["publications"]]
    assert runs == [(first.run_id, False), (second.run_id, False), (first.run_id, True)]
    assert revert(small.client, DAYS[0], second.run_id) == (first.run_id, second.run_id)


def test_rows_of_a_run_that_was_replaced_long_ago_are_dropped_whole(small: Source) -> None:
    produce(small.settings, small.catalog, records(seed=18, count=300))
    (first,) = small.run(DAYS[0])
    (second,) = small.run(DAYS[0])
    (third,) = small.run(DAYS[0])
    revert(small.client, DAYS[0], second.run_id)
    now = datetime.now(UTC)
    assert prune(small.client, timedelta(days=7), now) == []
    dropped = prune(small.client, timedelta(days=7), now + timedelta(days=8))
    assert {one.run_id for one in dropped} == {first.run_id, third.run_id}
    assert not any(any(small.rows(run_id, DAYS[0]).values()) for run_id in (first.run_id, third.run_id))
    assert any(small.rows(second.run_id, DAYS[0]).values())
    assert [(one.run_id, one.kept) for one in editions(small.client, DAYS[0])] == [
        (first.run_id, False), (second.run_id, True), (third.run_id, False), (second.run_id, True),
    ]  # fmt: skip
    with pytest.raises(RevertError, match="the rows of run .* are gone"):
        revert(small.client, DAYS[0], first.run_id)
    assert prune(small.client, timedelta(days=7), now + timedelta(days=8)) == []


def test_a_run_computed_again_from_its_manifest_has_the_same_bytes(source: Source) -> None:
    produce(source.settings, source.catalog, records(seed=19, count=3_000))
    runs = {result.partition: result.run_id for result in source.run(*DAYS)}
    # what comes later for the same day is not what the run has read
    source.send((START + 80 * 3_600_000, event("late", START + 5)))
    again = repeat(source.settings, source.catalog, DAYS[0], session_of=source.session_of)
    assert (again.run_id, again.differing) == (runs[DAYS[0]], ())
    assert again.rows == sum(map(len, source.rows(runs[DAYS[0]], DAYS[0]).values()))
    held = query_frame(source.client, "SELECT DISTINCT run_id FROM batch_events WHERE partition = '2026-03-01'")
    assert held["run_id"].to_list() == [runs[DAYS[0]]]

    # and it says so where a byte is another
    source.client.command(
        "ALTER TABLE batch_events UPDATE events = events + 1 WHERE partition = '2026-03-02' AND "
        "slice_start = (SELECT min(slice_start) FROM batch_events WHERE partition = '2026-03-02')",
        settings={"mutations_sync": 2},
    )
    told = repeat(source.settings, source.catalog, DAYS[1], session_of=source.session_of)
    assert told.differing == ("batch_events",)
    with pytest.raises(NotRepeatableError, match="was of catalog version"):
        repeat(source.settings, source.catalog.only(["events"]), DAYS[0], session_of=source.session_of)


def test_what_a_run_would_change_is_known_before_anybody_sees_it(source: Source) -> None:
    produce(source.settings, source.catalog, records(seed=20, count=600))
    source.run(*DAYS)
    before = source.shown("events")
    planned = plan_days(source.settings, source.catalog, DAYS)
    assert try_out(source.settings, source.catalog, planned, session_of=source.session_of) == []
    source.send((START + 80 * 3_600_000, event("late", START + 5)))
    planned = plan_days(source.settings, source.catalog, DAYS)
    changes = try_out(source.settings, source.catalog, planned, session_of=source.session_of)
    assert source.shown("events") == before
    found = {(change.metric, change.grain): change for change in changes}
    daily = found["events", "1d"]
    assert (daily.windows, daily.changed, daily.greatest) == (3, 1, 1.0)
    (example,) = daily.examples
    assert example.window == "2026-03-01 00:00:00.000"
    assert int(example.now) == int(example.was) + 1
    source.run(DAYS[0])
    after = source.shown("events")
    assert {name for name in after if after[name] != before[name]} == {
        f"{change.metric}_{change.grain}" for change in changes
    }


def test_what_was_published_at_some_time_can_be_asked_for(small: Source) -> None:
    produce(small.settings, small.catalog, records(seed=21, count=300))
    (first,) = small.run(DAYS[0])
    then = editions(small.client, DAYS[0])[0].published_at
    small.send((START + 80 * 3_600_000, event("late", START + 5)))
    (second,) = small.run(DAYS[0])
    assert small.events_of(then) == first.events
    assert small.events_of(then - timedelta(milliseconds=1)) is None
    assert small.events_of(datetime.now(UTC)) == second.events == first.events + 1
    back = revert(small.client, DAYS[0])
    assert back == (second.run_id, first.run_id)
    moments = [one.published_at for one in editions(small.client, DAYS[0])]
    assert [small.events_of(moment) for moment in moments] == [first.events, second.events, first.events]
    prune(small.client, timedelta(days=7), datetime.now(UTC) + timedelta(days=8))
    assert small.events_of(moments[0]) == first.events
    with pytest.raises(QueryError, match=r"what was published then of 2026-03-01 has been dropped"):
        small.events_of(moments[1])


def test_all_that_clickhouse_held_is_the_same_again_from_the_archive(source: Source) -> None:
    sent = records(seed=22, count=3_000)
    produce(source.settings, source.catalog, sent)
    source.run(*DAYS)
    assert all(result.certified for result in reconcile(source.settings, source.catalog, DAYS))
    before = source.shown()
    assert sum(map(len, before.values())) > 1_000
    catch_up(source.archiver, source.offsets())
    for number in range(3):
        source.expire(number, _first_offset(sent, number, START + 2 * DAY_MS))

    source.client.command(f"DROP DATABASE {quote(source.settings.database(source.catalog.source))} SYNC")
    source.run(*DAYS)
    assert all(result.certified for result in reconcile(source.settings, source.catalog, DAYS))
    assert source.shown() == before


def command(source: Source, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "orchestration.cli.main", "--catalog", str(source.path), *arguments]
    where = os.environ | source.settings.environ()
    return subprocess.run(line, env=where, capture_output=True, text=True, check=False)


def _first_offset(sent: Sequence[Record], topic_partition: int, since: int) -> int:
    return next(r.offset for r in sent if r.topic_partition == topic_partition and r.record_time >= since)
