"""Lookups on a real broker: versions change between events, come late, or are gone before they are archived."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import yaml
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from batch_layer.lookups import LookupHistoryError
from batch_layer.run import run as batch
from infra import kafka as broker
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.lookup import Known
from metrics.window import to_epoch_ms
from reconciliation.reconcile import reconcile
from reconciliation.result import PartitionReconciliation
from serving import schema
from serving.lookup_archive import Archive, Gap, LookupTopicError, archived_records, gaps
from serving.lookup_positions import recorded
from serving.readings import is_of
from speed_layer.lookup_spans import SpansRead, SpanTable
from speed_layer.lookups import PartitionLookups, _versions_of
from speed_layer.main import run as speed

START = to_epoch_ms(datetime(2026, 3, 1, 12, tzinfo=UTC))
DAY = datetime(2026, 3, 1, tzinfo=UTC).date()
CLOSING = START + 2 * 86_400_000
USERS = ("ann", "bob", "eve")
EVENTS = 300
"""Events of the three users in turn, a tenth of a second apart."""

NO_TEXT = 7
Version = tuple[str, int, dict[str, Any] | bytes | None]
"""Key, timestamp after `START` in ms, value of a record of the lookup's topic."""


@pytest.fixture
def source(unique: str) -> Catalog:
    gold = "customers_tier = 'gold'"
    tree = f"""
        source: {unique}
        topic: {unique}.events
        event_id: id
        event_time: {{field: ts, unit: ms}}
        allowed_lateness: 1m
        topic_partitions: 2
        fields: {{user: string, amount: {{type: decimal, scale: 2}}}}
        lookups:
          customers:
            topic: {unique}.customers
            key: user
            fields: {{segment: string, tier: {{type: string, default: none}}}}
        metrics:
          events: {{agg: count, window: tumbling 10s}}
          by_segment: {{agg: count, by: [customers_segment], window: [tumbling 10s, day UTC]}}
          revenue: {{agg: sum(amount), where: "{gold}", window: tumbling 10s}}
          segments: {{agg: distinct(customers_segment), window: tumbling 10s}}
          share: {{ratio: [gold, events]}}
          gold: {{agg: count, where: "{gold}", window: tumbling 10s}}
    """
    return parse_catalog(yaml.safe_load(tree), {}, "test")


def send_events(settings: Settings, source: Catalog, numbers: range) -> None:
    """Event `n` happened `n` tenths of a second in, is worth `n` cents, and was sent at once."""
    broker.ensure_topics(settings, {source.topic: 2})
    records = [
        {"partition": n % 2, "timestamp": START + 100 * n, "value": json.dumps(body(n)).encode()} for n in numbers
    ]
    broker.produce_all(broker.producer(settings), source.topic, records)


def body(number: int) -> dict[str, Any]:
    amount = str(Decimal(number) / 100)
    return {"id": f"e{number}", "ts": START + 100 * number, "user": USERS[number % 3], "amount": amount}


def close(settings: Settings, source: Catalog) -> None:
    """Shows in both partitions that the day is over."""
    late = {"id": "last", "ts": CLOSING, "user": "nobody", "amount": "0"}
    records = [
        {"partition": p, "timestamp": CLOSING, "value": json.dumps(late | {"id": f"last{p}"}).encode()} for p in (0, 1)
    ]
    broker.produce_all(broker.producer(settings), source.topic, records)


def send_versions(settings: Settings, source: Catalog, versions: list[Version]) -> None:
    (lookup,) = source.lookups
    broker.ensure_topics(settings, {lookup.topic: 1}, {"cleanup.policy": "compact"})
    records = [
        {
            "partition": 0,
            "key": key.encode(errors="surrogateescape"),
            "timestamp": START + time,
            "value": json.dumps(value).encode() if isinstance(value, dict) else value,
        }
        for key, time, value in versions
    ]
    broker.produce_all(broker.producer(settings), lookup.topic, records)


def segment_of(number: int, versions: list[Version]) -> dict[str, Any]:
    """What an event is joined with, slowly: of its user's versions, the last that was valid then."""
    found: dict[str, Any] = {}
    reached: dict[str, int] = {}
    for key, time, value in versions:
        if isinstance(value, bytes) or (value and value.get("segment") == NO_TEXT):
            continue
        reached[key] = max(time, reached.get(key, time))
        if key == USERS[number % 3] and reached[key] <= 100 * number:
            found = value or {}
    return found


def expected_segments(numbers: range, versions: list[Version]) -> dict[str, int]:
    return dict(Counter(segment_of(n, versions).get("segment", "") for n in numbers))


def expected_revenue(numbers: range, versions: list[Version]) -> Decimal:
    return sum((Decimal(n) / 100 for n in numbers if segment_of(n, versions).get("tier") == "gold"), Decimal(0))


def segments(settings: Settings, source: Catalog, table: str, where: str = "1") -> dict[str, int]:
    sql = (
        f"SELECT customers_segment, sum(events) FROM {table} WHERE {where} AND slice_start < "
        f"fromUnixTimestamp64Milli({START + 86_400_000}, 'UTC') GROUP BY customers_segment"
    )
    client = connect(settings, settings.database(source.source))
    return {name: int(number) for name, number in client.query(sql).result_rows if number}


def of_run(run_id: str) -> str:
    return f"run_id = '{run_id}'"


FIRST: list[Version] = [
    ("ann", -3_600_000, {"segment": "new"}),
    ("bob", -3_600_000, {"segment": "old", "tier": "gold"}),
    ("\udcff", -3_000, {"segment": "nobody's"}),
    ("bob", -2_000, b"{"),
    ("ann", 5_000, {"segment": "regular", "tier": "gold", "since": 2020}),
    # written later, with an earlier timestamp: valid from where the former one is
    ("ann", 4_000, {"segment": "loyal", "tier": "gold"}),
    ("ann", 12_000, {"segment": NO_TEXT}),
    ("bob", 15_000, None),
]
LATE: list[Version] = [("eve", 10_000, {"segment": "found", "tier": "gold"}), ("bob", 20_000, {"segment": "back"})]


def test_events_are_joined_with_the_version_that_was_valid_and_late_versions_are_a_cause(
    stack: Settings, source: Catalog
) -> None:
    numbers = range(EVENTS)
    send_versions(stack, source, FIRST)
    send_events(stack, source, numbers)
    close(stack, source)

    assert speed(stack, source, until_drained=True) == 0

    live = expected_segments(numbers, FIRST)
    assert len(live) == 4
    assert segments(stack, source, "speed_by_segment FINAL") == live
    dead = "SELECT offset, reason, hex(key), value FROM lookup_dead_letters FINAL ORDER BY offset"
    client = connect(stack, stack.database(source.source))
    found = [tuple(row) for row in client.query(dead).result_rows]
    assert found == [
        (2, "key_is_no_text", "FF", '{"segment": "nobody\'s"}'),
        (3, "not_json", b"bob".hex().upper(), "{"),
        (6, "wrong_type", b"ann".hex().upper(), '{"segment": 7}'),
    ]
    kept = (
        "SELECT key, toUnixTimestamp64Milli(valid_from) - {start:Int64}, is_deleted, fields FROM lookup_customers FINAL"
    )
    rows = client.query(f"{kept} ORDER BY offset", parameters={"start": START}).result_rows
    assert [tuple(row) for row in rows] == [
        ("ann", -3_600_000, 0, {"segment": "new", "tier": "none"}),
        ("bob", -3_600_000, 0, {"segment": "old", "tier": "gold"}),
        ("ann", 5_000, 0, {"segment": "regular", "tier": "gold"}),
        ("ann", 5_000, 0, {"segment": "loyal", "tier": "gold"}),
        ("bob", 15_000, 1, {}),
    ]

    (first,) = batch(stack, source, [DAY])
    assert (
        segments(stack, source, "batch_by_segment", f"{of_run(first.run_id)} AND {is_of('exact', 'reading')}") == live
    )
    assert _result(stack, source).causes["lookup_lag"] == 0

    # versions that were valid while events happened, but come after they have been read
    send_versions(stack, source, LATE)
    (second,) = batch(stack, source, [DAY])

    known = expected_segments(numbers, FIRST + LATE)
    assert known != live
    for reading in ("exact", "with_late", "counted"):
        where = f"{of_run(second.run_id)} AND {is_of(reading, 'reading')}"
        assert segments(stack, source, "batch_by_segment", where) == known
    assert segments(stack, source, "expected_by_segment", of_run(second.run_id)) == live
    result = _result(stack, source)
    assert result.causes["lookup_lag"] > 0
    revenue = _metric(result, "revenue")
    parts = revenue.grains[0].split.parts()
    gain = expected_revenue(numbers, FIRST + LATE) - expected_revenue(numbers, FIRST)
    assert {cause: part for cause, part in parts.items() if part} == {"lookup_lag": gain}
    assert revenue.grains[0].changed_by["lookup_lag"] == 2
    assert _metric(result, "events").grains[0].differing == 0
    assert _metric(result, "share").grains[0].changed_by["lookup_lag"] == 2
    assert all(one.split.parts()["sketch"] == 0 for one in _metric(result, "by_segment").grains)

    # a restart reads the log again, with the versions known at first: what it counted then stays where it was
    more = range(EVENTS, EVENTS + 60)
    send_events(stack, source, more)
    assert speed(stack, source, until_drained=True) == 0
    assert segments(stack, source, "speed_by_segment FINAL") == dict(
        Counter(live) + Counter(expected_segments(more, FIRST + LATE))
    )
    batch(stack, source, [DAY])
    again = _result(stack, source)
    assert again.causes["lookup_lag"] == result.causes["lookup_lag"]


def test_a_job_beside_another_joins_with_what_the_other_knew_when_it_read(
    kafka: Settings, clickhouse: Settings, source: Catalog
) -> None:
    (lookup,) = source.lookups
    database = clickhouse.database(source.source)
    schema.apply(connect(clickhouse), source, database)
    client = connect(clickhouse, database)
    send_versions(kafka, source, FIRST)
    send_events(kafka, source, range(40))
    live, beside = (PartitionLookups(clickhouse, source, 0) for _ in range(2))
    live.begin(0, 4)
    beside.begin(0, 2)
    live.begin(4, 8)
    live.begin(8, 9)
    send_versions(kafka, source, LATE)
    versions = _versions_of(clickhouse, database, lookup)
    versions.await_positions({0: len(FIRST + LATE)})

    beside.begin(2, 12)
    live.begin(9, 12)

    spans = recorded(client, lookup, source.topic, 0, 0, 100)
    assert [(s.start, s.end, dict(s.positions)) for s in spans] == [
        (0, 9, {0: len(FIRST)}),
        (9, 12, {0: len(FIRST + LATE)}),
    ]
    assert live._known["customers"].reach(0, 9) == beside._known["customers"].reach(0, 2) == 12
    client.command("OPTIMIZE TABLE lookup_positions FINAL")
    assert client.query("SELECT count() FROM lookup_positions").result_rows == [(2,)]


def test_of_many_that_claim_the_same_offsets_at_once_one_holds_for_all_even_where_the_log_began_anew(
    kafka: Settings, clickhouse: Settings, source: Catalog
) -> None:
    (lookup,) = source.lookups
    database = clickhouse.database(source.source)
    schema.apply(connect(clickhouse), source, database)

    def read(number: int) -> list[tuple[int, int, int]]:
        spans = SpansRead(SpanTable(clickhouse, database, lookup, source.topic, 0))
        chunks = [spans.settle(n, n + 5 + number, lambda: {0: number}) for n in range(0, 60, 5 + number)]
        held = Known.of((0, s.start, s.end, s.positions) for chunk in chunks for s in chunk)
        return [(start, min(end, 60), at[0]) for _, start, end, at in held.spans if start < 60]

    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            whole, *others = pool.map(read, range(4))
        assert whole[0][0] == 0
        assert whole[-1][1] == 60
        assert others == [whole] * 3
        delete = "ALTER TABLE lookup_positions DELETE WHERE events_topic = {topic:String}"
        client = connect(clickhouse, database)
        client.command(delete, parameters={"topic": source.topic}, settings={"mutations_sync": 1})


def test_days_before_the_history_of_a_lookup_is_complete_are_refused(
    kafka: Settings, clickhouse: Settings, source: Catalog
) -> None:
    (lookup,) = source.lookups
    send_events(kafka, source, range(10))
    close(kafka, source)
    send_versions(kafka, source, FIRST)
    _delete_before(kafka, lookup.topic, 2)

    with pytest.raises(LookupHistoryError) as refused:
        batch(clickhouse, source, [DAY])

    text = str(refused.value)
    assert text.startswith("the history of lookup `customers` is complete only from ")
    assert f"day {DAY} needs it from 2026-03-01T00:00:00Z" in text
    assert f"of topic `{lookup.topic}` offsets 0 to 2 of partition 0 were gone before they were archived" in text
    assert "choose days from then on" in text
    client = connect(clickhouse, clickhouse.database(source.source))
    assert client.query("SELECT count() FROM batch_runs").result_rows == [(0,)]
    (gap,) = gaps(client, lookup)
    assert (gap.topic_partition, gap.start, gap.end) == (0, 0, 2)
    assert archived_records(client, lookup)["offset"].to_list() == [2, 3, 4, 5, 6, 7]


def test_what_is_archived_stays_when_the_topic_forgets_it(
    kafka: Settings, clickhouse: Settings, source: Catalog
) -> None:
    (lookup,) = source.lookups
    database = clickhouse.database(source.source)
    schema.apply(connect(clickhouse), source, database)
    client = connect(clickhouse, database)
    send_versions(kafka, source, FIRST)
    _archived(kafka, client, lookup)
    _delete_before(kafka, lookup.topic, 7)
    send_versions(kafka, source, LATE)
    _archived(kafka, client, lookup)
    assert gaps(client, lookup) == []
    records = archived_records(client, lookup)
    assert records["offset"].to_list() == list(range(len(FIRST + LATE)))
    assert records["value"][3] == b"{"

    _delete_before(kafka, lookup.topic, 9)
    _archived(kafka, client, lookup)
    assert gaps(client, lookup) == []


def test_offsets_that_were_compacted_away_are_complete_again_from_the_last_record_on(
    kafka: Settings, clickhouse: Settings, source: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lookup,) = source.lookups
    database = clickhouse.database(source.source)
    schema.apply(connect(clickhouse), source, database)
    client = connect(clickhouse, database)
    send_versions(kafka, source, FIRST)
    archive = Archive(kafka, client, lookup)
    whole = archive._log.read

    def compacted(timeout_s: float) -> Any:  # noqa: ANN401 - a frame
        records = whole(timeout_s)
        if records.height:
            archive._log.holes.append((0, 4, 5, False))
        return records

    monkeypatch.setattr(archive._log, "read", compacted)
    archive.catch_up()
    archive.close()
    assert gaps(client, lookup) == [Gap(0, 4, 5, START + 15_000)]


def test_a_topic_that_was_made_anew_is_refused(kafka: Settings, clickhouse: Settings, source: Catalog) -> None:
    (lookup,) = source.lookups
    database = clickhouse.database(source.source)
    schema.apply(connect(clickhouse), source, database)
    client = connect(clickhouse, database)
    send_versions(kafka, source, FIRST)
    _archived(kafka, client, lookup)
    client.command(
        "INSERT INTO lookup_archive (lookup, topic, topic_partition, next_offset) "
        f"VALUES ('customers', '{lookup.topic}', 0, 1000)"
    )
    with pytest.raises(LookupTopicError, match=r"must reach to offset 1000 of partition 0.*it ends at 8.*another name"):
        Archive(kafka, client, lookup)


def _archived(settings: Settings, client: Any, lookup: Any) -> None:  # noqa: ANN401
    archive = Archive(settings, client, lookup)
    archive.catch_up()
    archive.close()


def _delete_before(settings: Settings, topic: str, offset: int) -> None:
    # only a topic that may delete lets its records be deleted
    admin = broker.admin(settings)
    entry = ConfigEntry("cleanup.policy", "compact,delete", incremental_operation=AlterConfigOpType.SET)
    keep = ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry, keep])
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result(30)


def _result(settings: Settings, source: Catalog) -> PartitionReconciliation:
    """The day's reconciliation, in which nothing is left unexplained."""
    (result,) = reconcile(settings, source, [DAY])
    assert result.examined is not None
    assert result.examined.certificate.certified
    assert result.examined.certificate.residual == 0
    assert result.causes["not_yet_closed"] == 0
    return result


def _metric(result: PartitionReconciliation, name: str) -> Any:  # noqa: ANN401
    assert result.examined is not None
    return next(diff for diff in result.examined.metrics if diff.metric == name)
