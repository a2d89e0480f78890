"""Avro through a real broker and a real registry: what `ingest` writes is what both layers read."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from confluent_kafka import TopicPartition

from batch_layer.job import read_rows, spark_session
from batch_layer.manifest import Plan, ReadRange
from batch_layer.rows import DEAD, EVENT, from_bytes
from infra import kafka as log
from infra.avro import unframe_of
from infra.processes import Identity, read_json
from infra.registry import Registry, RegistryUnavailableError, SchemaRefusedError, registry_address, require_registry
from infra.services import kafka_services, registry_services, schema_registry
from infra.settings import Settings
from infra.stack import down, up
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.disposition import Chunk, PartitionReader
from orchestration.ingest import IngestResult, ingest
from speed_layer.log import PartitionLog

DAY = date(2026, 3, 1)
ROWS = """\
id,ts,user,country,amount,items,weight
a,2026-03-01T00:00:01Z,u1,DE,12.30,1,0.5
b,2026-03-01T00:00:02Z,u2,,-0.05,,-0.0
c,2026-03-01T00:00:03Z,u1,FR,,3,1e3
a,2026-03-01T00:00:01Z,u1,DE,12.30,1,0.5
d,2026-03-01T00:00:04Z,u3,DE,1.234,1,1
e,2026-03-01T00:00:05Z,u3,DE,1,many,1
"""


def catalog(name: str, kind: str = "avro", **fields: Any) -> Catalog:
    """A catalog whose metrics use every field: of the others nothing is kept."""
    by, summed = ["user", *fields.keys() & {"country"}], fields.keys() - {"country"}
    tree = {
        "source": name,
        "topic": f"events.{name}",
        "format": kind,
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "topic_partitions": 1,
        "fields": {"user": "string", **fields},
        "metrics": {
            "events": {"agg": "count", "by": by, "window": "tumbling 1m"},
            **{f"all_{field}": {"agg": f"sum({field})", "window": "tumbling 1m"} for field in sorted(summed)},
        },
    }
    return parse_catalog(tree, {}, "test")


def full(name: str, kind: str = "avro") -> Catalog:
    return catalog(
        name,
        kind,
        country={"type": "string", "default": "unknown"},
        amount={"type": "decimal", "scale": 2},
        items="int",
        weight="float",
    )


def write(settings: Settings, source: Catalog, text: str, directory: Path) -> IngestResult:
    file = directory / f"{source.source}.csv"
    file.write_text(text)
    return ingest(settings, source, file)


def values(settings: Settings, topic: str) -> list[tuple[int, int, bytes]]:
    end = log.log_offsets(settings, topic)[0][1]
    consumer = log.consumer(settings)
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[tuple[int, int, bytes]] = []
    while len(found) < end:
        found += [(m.offset(), m.timestamp()[1], m.value()) for m in consumer.consume(end, 5)]
    consumer.close()
    return found


def read(settings: Settings, source: Catalog) -> Chunk:
    reader = PartitionReader(source, unframe_of(settings, source, patience_s=5))
    offsets, times, texts = map(list, zip(*values(settings, source.topic), strict=True))
    return reader.read(0, offsets, times, texts)


def test_json_and_avro_files_are_the_same_events(registry: Settings, tmp_path: Path, unique: str) -> None:
    plain, avro = full(f"{unique}j", "json"), full(f"{unique}a")
    assert write(registry, plain, ROWS, tmp_path).sent == 6
    written = write(registry, avro, ROWS, tmp_path)
    assert (written.sent, written.rejected) == (4, 2)
    assert "`amount` must have at most" in written.rejects[0].reason
    assert [dead["reason"] for dead in read(registry, plain).dead_letters.to_dicts()] == ["wrong_type"] * 2
    found = [read(registry, source) for source in (plain, avro)]
    events = [chunk.events.drop("offset").filter(pl.col("event_id").is_in(["a", "b", "c"])) for chunk in found]
    assert events[0].equals(events[1], null_equal=True)
    assert events[0]["disposition"].to_list() == ["counted", "duplicate", "counted", "counted"]
    assert all(value[0] == 0 for _, _, value in values(registry, avro.topic))


def test_events_of_old_and_new_schema_replay_together(registry: Settings, tmp_path: Path, unique: str) -> None:
    old, new = catalog(unique), full(unique)
    write(registry, old, "id,ts,user\na,2026-03-01T00:00:01Z,u1\n", tmp_path)
    write(registry, new, "id,ts,user,country,amount,items,weight\nb,2026-03-01T00:00:02Z,u2,DE,1.50,2,0.5\n", tmp_path)
    ids = {int.from_bytes(value[1:5], "big") for _, _, value in values(registry, new.topic)}
    assert len(ids) == 2
    for source, dead in ((new, 0), (old, 0)):
        chunk = read(registry, source)
        assert (chunk.events.height, chunk.dead_letters.height) == (2, dead)
    by_batch = read(registry, new).events
    assert by_batch["f_country"].to_list() == ["unknown", "DE"]
    assert [None if each is None else str(each) for each in by_batch["f_amount"]] == [None, "1.50"]
    assert by_speed(registry, new).events.equals(by_batch, null_equal=True)


def by_speed(settings: Settings, source: Catalog) -> Chunk:
    partition = PartitionLog(settings, source, 0)
    partition.seek(0)
    records = partition.next()
    while not records.at_head:
        more = partition.next()
        records.end, records.at_head = more.end, more.at_head
        records.offsets += more.offsets
        records.times += more.times
        records.values += more.values
    partition.close()
    return partition.reader.read(0, records.offsets, records.times, records.values)


def test_spark_reads_what_ingest_wrote(registry: Settings, tmp_path: Path, unique: str) -> None:
    source = full(unique)
    write(registry, source, ROWS, tmp_path)
    broken = [{"value": b"\0\0\0\0\x63???", "timestamp": 1_772_323_210_000, "partition": 0}]
    log.produce_all(log.producer(registry), source.topic, broken)
    end = log.log_offsets(registry, source.topic)[0][1]
    plan = Plan((DAY,), (ReadRange(0, 0, 0, end, 0, end, 0),), None)
    with spark_session(registry, end) as session:
        rows = read_rows(session, registry, source, plan).collect()
    (payload,) = (bytes(row.payload) for row in rows if row.kind == EVENT)
    assert sorted(from_bytes(payload)["event_id"]) == [*"aabc"]
    assert [row.reason for row in rows if row.kind == DEAD] == ["unknown_schema"]


def test_a_catalog_that_cannot_read_the_last_one_is_refused(registry: Settings, tmp_path: Path, unique: str) -> None:
    write(registry, catalog(unique), "id,ts,user\na,2026-03-01T00:00:01Z,u1\n", tmp_path)
    required = catalog(unique, items={"type": "int", "required": True})
    with pytest.raises(SchemaRefusedError, match="items is new and has no default"):
        write(registry, required, "id,ts,user,items\nb,2026-03-01T00:00:01Z,u1,1\n", tmp_path)
    assert read(registry, catalog(unique)).events.height == 1


def test_a_registry_is_started_where_a_catalog_needs_the_local_one(unique: str) -> None:
    settings, source = Settings(schema_registry=None), catalog(unique)
    assert [each.name for each in registry_services(settings, source)] == ["schema-registry"]
    assert registry_services(settings, catalog(unique, "json")) == []
    assert registry_services(Settings(schema_registry="http://elsewhere"), source) == []
    assert registry_address(Settings(schema_registry="http://elsewhere/"), source) == "http://elsewhere"
    named = replace(source, registry="http://named")
    assert registry_services(settings, named) == []
    assert registry_address(Settings(schema_registry="http://elsewhere"), named) == "http://named"


@pytest.fixture
def own(tmp_path: Path, new_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """A broker of the test's own, and no registry."""
    settings = new_settings(tmp_path / "own")
    try:
        up(settings, kafka_services(settings), owner_pid=os.getpid())
        yield settings
    finally:
        down(settings)


def test_a_registry_that_is_away_loses_nothing(
    own: Settings, tmp_path: Path, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = full(unique)
    service = schema_registry(own)
    with pytest.raises(RegistryUnavailableError, match="start the stack with `lockstep up`"):
        require_registry(own, source, 0.0)
    up(own, [service], owner_pid=os.getpid())
    write(own, source, ROWS, tmp_path)
    number = int.from_bytes(values(own, source.topic)[0][2][1:5], "big")

    _down_with(own, service.name)
    with pytest.raises(RegistryUnavailableError):
        PartitionReader(source, unframe_of(own, source, patience_s=0)).read(0, [0], [0], [b"\0\0\0\0\x01x"])
    with caplog.at_level(logging.WARNING, "infra.registry"), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(by_speed, own, source)
        while not any("waiting" in record.message for record in caplog.records):
            assert not waiting.done()
        up(own, [service], owner_pid=os.getpid())
        chunk = waiting.result(60)
    assert (chunk.events.height, chunk.dead_letters.height) == (4, 0)
    # It kept the schema under its id, and goes on counting behind it.
    restarted = Registry(own.schema_registry_address, 5.0)
    assert restarted.schema(number)[0]["name"] == source.source
    assert restarted.register("other", {"type": "record", "name": "other", "fields": []}) == number + 1


def _down_with(settings: Settings, name: str) -> None:
    """Ends a service and what would start it again."""
    state = read_json(settings.run_dir / f"{name}.json")
    assert state is not None
    from infra.stack import _stop  # noqa: PLC0415

    _stop(settings, name)
    process = Identity.from_json(state["process"])
    assert process is None or not process.alive()


def test_records_of_confluents_own_serializer_are_read(registry: Settings, unique: str) -> None:
    source = catalog(unique)
    types = {"id": "string", "ts": "long", "user": "string"}
    schema = {"type": "record", "name": "e", "fields": [{"name": n, "type": t} for n, t in types.items()]}
    from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415
    from confluent_kafka.schema_registry.avro import AvroSerializer  # noqa: PLC0415
    from confluent_kafka.serialization import MessageField, SerializationContext  # noqa: PLC0415

    client = SchemaRegistryClient({"url": registry.schema_registry_address})
    serialize = AvroSerializer(client, json.dumps(schema))
    value = serialize({"id": "a", "ts": 1, "user": "u"}, SerializationContext(source.topic, MessageField.VALUE))
    chunk = PartitionReader(source, unframe_of(registry, source, patience_s=5)).read(0, [0], [1], [value])
    assert chunk.events["event_id"].to_list() == ["a"]
