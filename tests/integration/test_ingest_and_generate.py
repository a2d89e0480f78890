"""Files and generated events in a real log."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import yaml
from confluent_kafka import Message, TopicPartition
from confluent_kafka.admin import ConfigResource

from infra.catalog_file import load_catalog
from infra.kafka import admin, consumer, ensure_topics, log_offsets
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import PartitionReader
from metrics.reference import Record, answer
from orchestration import catalogs
from orchestration.generator import GenerateOptions, generate
from orchestration.ingest import IngestOptions, ingest
from orchestration.row_files import IngestError

DATA = Path(__file__).parents[1] / "data"
CLICKSTREAM = DATA / "clickstream.yaml"
SHOP = Path(catalogs.__path__[0]) / "shop.yaml"
AT = 1_704_067_200_000  # 2024-01-01T00:00:00Z
CATALOG = """
source: notes
topic: notes
event_id: event_id
event_time: {field: ts}
key: user
fields:
  user: {type: string, required: true}
metrics:
  events: {agg: count, window: tumbling 1d}
"""


@pytest.fixture
def catalog(unique: str, tmp_path: Path) -> Catalog:
    path = tmp_path / "notes.yaml"
    path.write_text(CATALOG, encoding="utf-8")
    return replace(load_catalog(path), topic=f"notes.{unique}")


def messages(settings: Settings, topic: str) -> Iterator[Message]:
    """Every record of a topic, by partition and offset."""
    reader = consumer(settings)
    try:
        for partition, (begin, end) in log_offsets(settings, topic).items():
            reader.assign([TopicPartition(topic, partition, begin)])
            position = begin
            while position < end:
                for message in reader.consume(min(10_000, end - position), 10):
                    assert message.error() is None
                    position = message.offset() + 1
                    yield message
    finally:
        reader.close()


def records(settings: Settings, topic: str) -> list[Record]:
    return [Record(m.partition(), m.offset(), m.timestamp()[1], m.value()) for m in messages(settings, topic)]


def user_times(settings: Settings, topic: str) -> dict[str, list[tuple[int, int]]]:
    """(record timestamp, event time) of each user's events, in log order."""
    found: dict[str, list[tuple[int, int]]] = {}
    for message in messages(settings, topic):
        event = json.loads(message.value())
        assert message.key() == event["user"].encode()
        found.setdefault(event["user"], []).append((message.timestamp()[1], event["ts"]))
    return found


def test_the_clickstream_in_the_log_gives_the_expected_numbers(kafka: Settings, unique: str) -> None:
    catalog = replace(load_catalog(CLICKSTREAM), topic=f"clicks.{unique}")
    result = ingest(kafka, catalog, DATA / "clickstream.csv.gz")
    assert (result.sent, result.rejected, result.ids_from_content) == (31_106, 0, True)

    found = answer(yaml.safe_load(CLICKSTREAM.read_text(encoding="utf-8")), records(kafka, catalog.topic))
    assert Counter(found.dispositions.values()) == {"counted": 31_076, "duplicate": 30}
    expected = json.loads((DATA / "clickstream.expected.json").read_text(encoding="utf-8"))
    by_type: Counter[str] = Counter()
    by_channel: Counter[str] = Counter()
    by_day: dict[str, int] = {}
    users_by_day: dict[str, int] = {}
    for (metric, grain, start, dimensions), cell in found.exact.items():
        day = datetime.fromtimestamp(start / 1000, UTC).date().isoformat()
        if metric == "events_by_type":
            by_type[dimensions[0]] += int(cell.value)
        elif metric == "purchases_by_channel":
            by_channel[dimensions[0]] += int(cell.value)
        elif metric == "distinct_users":
            users_by_day[day] = int(cell.value)
        elif grain == "1d":
            by_day[day] = int(cell.value)
    assert by_type == expected["events_by_type"]
    assert by_day == expected["events_by_day"]
    assert users_by_day == expected["distinct_users_by_day"]
    assert by_channel == expected["purchases_by_channel"]


def test_rows_are_written_by_event_time_and_it_is_their_timestamp(
    kafka: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    file = tmp_path / "a.ndjson"
    lines = [{"user": f"u{n % 3}", "ts": AT + (n * 7_919) % 1_000 * 60_000} for n in range(1_000)]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert ingest(kafka, catalog, file, IngestOptions(memory_bytes=50_000)).sent == 1_000
    for times in user_times(kafka, catalog.topic).values():
        assert times == sorted(times)
        assert all(record_time == event_time for record_time, event_time in times)


def test_an_arrival_column_gives_order_and_timestamps(kafka: Settings, catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    arrivals = [datetime(2024, 1, 2, 3 - n, tzinfo=UTC) for n in range(3)]
    happened = [datetime(2024, 1, 1, n, tzinfo=UTC) for n in range(3)]
    pl.DataFrame({"user": ["u"] * 3, "ts": happened, "got": arrivals}).write_parquet(file)
    ingest(kafka, catalog, file, IngestOptions(arrival="got"))
    expected = [
        (round(a.timestamp() * 1000), round(h.timestamp() * 1000)) for a, h in zip(arrivals, happened, strict=True)
    ]
    assert user_times(kafka, catalog.topic) == {"u": expected[::-1]}


def test_the_order_of_the_file_is_kept_on_request_with_timestamps_that_never_go_back(
    kafka: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"user,ts\nu,{AT}\nu,{AT + 9}\nu,{AT + 5}\nu,{AT + 12}\n", encoding="utf-8")
    ingest(kafka, catalog, file, IngestOptions(keep_order=True))
    assert user_times(kafka, catalog.topic) == {"u": [(AT, AT), (AT + 9, AT + 9), (AT + 9, AT + 5), (AT + 12, AT + 12)]}


def test_what_is_no_row_is_kept_in_a_file_and_what_is_no_event_goes_to_the_log(
    kafka: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    settings = kafka.model_copy(update={"data_dir": tmp_path})
    file = tmp_path / "a.ndjson.gz"
    lines = [
        '{"user": "u", "ts": 1704067200000}',
        "no JSON",
        '{"user": "u", "ts": "never"}',
        '{"user": 5, "ts": 1704067200001}',
    ]
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    result = ingest(settings, catalog, file)
    assert (result.sent, result.rejected) == (2, 2)
    assert result.rejects_file is not None
    kept = [json.loads(line) for line in result.rejects_file.read_text(encoding="utf-8").splitlines()]
    assert [(row["line"], row["raw"]) for row in kept] == [(2, "no JSON"), (3, '{"user":"u","ts":"never"}')]
    assert [row["line"] for row in kept] == [row.line for row in result.rejects] == [2, 3]
    reasons = []
    for record in records(kafka, catalog.topic):
        reader = PartitionReader(catalog)
        chunk = reader.read(record.topic_partition, [record.offset], [record.record_time], [record.value])
        reasons += chunk.dead_letters["reason"].to_list()
    assert reasons == ["wrong_type"]


def test_a_file_with_nothing_but_a_first_line_is_refused(kafka: Settings, catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("user,ts\n", encoding="utf-8")
    with pytest.raises(IngestError, match="has none below its first line"):
        ingest(kafka, catalog, file)


@pytest.mark.parametrize(
    "options", [IngestOptions(rate=10.0), IngestOptions(speed_up=100.0)], ids=["at a rate", "replayed"]
)
def test_events_are_sent_no_faster_than_asked_for(
    kafka: Settings, catalog: Catalog, tmp_path: Path, options: IngestOptions
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"user,ts\na,{AT}\nb,{AT}\nc,{AT + 10_000}\nd,{AT + 30_000}\n", encoding="utf-8")
    looks = [1_750_000_000.0]

    def clock() -> float:
        """A clock on which time passes only while somebody looks at it."""
        looks.append(looks[-1] + 0.02)
        return looks[-1]

    assert ingest(kafka, catalog, file, options, clock=clock).sent == 4
    assert looks[-1] - looks[0] >= 0.3


def test_a_topic_of_events_never_expires_by_age_even_if_it_was_made_otherwise(
    kafka: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    ensure_topics(kafka, {catalog.topic: 4}, {"retention.ms": "3600000"})
    file = tmp_path / "a.csv"
    file.write_text(f"user,ts\nu,{AT}\n", encoding="utf-8")
    ingest(kafka, catalog, file)
    resource = ConfigResource(ConfigResource.Type.TOPIC, catalog.topic)
    client = admin(kafka)
    config = client.describe_configs([resource])[resource].result(30)
    assert config["retention.ms"].value == "-1"
    assert len(records(kafka, catalog.topic)) == 1


def test_generated_events_lie_in_the_log_where_the_truth_says(kafka: Settings, unique: str, tmp_path: Path) -> None:
    catalog = replace(load_catalog(SHOP), topic=f"shop.{unique}")
    options = GenerateOptions(
        events=20_000, seed=5, days=2, rate=200, live=1, late=30, duplicates=50, out_of_order=100, bad=20, oversized=1,
        now=datetime(2025, 3, 5, 12, tzinfo=UTC),
    )  # fmt: skip
    result = generate(kafka, catalog, options, tmp_path / "truth.json")
    assert (result.history, result.live) == (20_000, 200)
    truth = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    assert truth == result.truth

    log = records(kafka, catalog.topic)
    named: dict[tuple[int, int], str] = {}
    for partition in range(catalog.topic_partitions):
        rows = [record for record in log if record.topic_partition == partition]
        reader = PartitionReader(catalog)
        chunk = reader.read(partition, [r.offset for r in rows], [r.record_time for r in rows], [r.value for r in rows])
        named |= {(partition, row["offset"]): row["disposition"] for row in chunk.exceptions.iter_rows(named=True)}
    assert len(log) == 20_200
    assert named == {(e["topic_partition"], e["offset"]): e["disposition"] for e in truth["exceptions"]}
    assert Counter(named.values()) == {"late": 30, "duplicate": 50, "dead_letter": 21}
