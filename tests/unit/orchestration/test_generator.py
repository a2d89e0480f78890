"""The generator's ground truth against the reference fold over the bytes that it made."""

import json
import zlib
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from infra.catalog_file import load_catalog
from metrics.reference import Answer, Record, answer
from orchestration import catalogs
from orchestration.generator import GenerateOptions, Generation
from orchestration.traffic import TrafficError
from orchestration.worlds import kind_of

SHOP = Path(catalogs.__path__[0]) / "shop.yaml"
NOON = round(datetime(2025, 3, 5, 12, tzinfo=UTC).timestamp() * 1000)
JUST_AFTER_MIDNIGHT = round(datetime(2025, 3, 5, 0, 20, tzinfo=UTC).timestamp() * 1000)
PARTITIONS = 4
OPTIONS = GenerateOptions(
    events=6_000, seed=7, days=3, rate=50, live=20, late=40, duplicates=60, out_of_order=150, bad=22, oversized=1,
    id_conflicts=5,
)  # fmt: skip


def make(options: GenerateOptions, now: int = NOON) -> tuple[Generation, list[Record]]:
    """A whole generation written to an imaginary log."""
    generation = Generation(load_catalog(SHOP), options, now)
    log: list[Record] = []
    ends: Counter[int] = Counter()
    batches = [*generation.history(), *generation.live(now + 3_000)]
    for batch in batches:
        for record in generation.outgoing(batch):
            partition = zlib.crc32(record.key or b"") % PARTITIONS
            if record.placed is not None:
                record.placed(partition, ends[partition])
            log.append(Record(partition, ends[partition], record.at, record.value))
            ends[partition] += 1
    return generation, log


def judge(log: list[Record]) -> Answer:
    return answer(yaml.safe_load(SHOP.read_text(encoding="utf-8")), log)


def day_ms(day: str) -> int:
    return round(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("now", [NOON, JUST_AFTER_MIDNIGHT], ids=["noon", "just after midnight"])
def test_the_reference_finds_every_disposition_where_the_truth_says(now: int) -> None:
    generation, log = make(OPTIONS, now)
    truth = generation.document("shop")
    found = judge(log).dispositions
    assert len(log) == 7_000
    assert Counter(found.values()) == Counter(truth["total"]["dispositions"])
    named = {(e["topic_partition"], e["offset"]): e["disposition"] for e in truth["exceptions"]}
    assert named == {place: name for place, name in found.items() if name != "counted"}


def test_as_many_of_each_kind_are_made_as_asked_for() -> None:
    generation, _ = make(OPTIONS)
    kinds = generation.document("shop")["total"]["kinds"]
    assert kinds == {
        "normal": 7_000 - 278, "out_of_order": 150, "late": 40, "duplicate": 60, "id_conflict": 5, "not_json": 6,
        "missing_field": 6, "wrong_type": 5, "event_time_in_future": 5, "too_large": 1,
    }  # fmt: skip


@pytest.mark.parametrize("which", ["exact", "counted"])
def test_the_values_of_every_day_are_those_of_the_reference(which: str) -> None:
    generation, log = make(OPTIONS)
    cells = judge(log).exact if which == "exact" else judge(log).expected
    truth = generation.document("shop")
    assert set(truth["closed_days"]) <= set(truth["by_day"])
    for day, part in truth["by_day"].items():
        cell = {
            (metric, *dimensions): value
            for (metric, grain, start, dimensions), value in cells.items()
            if grain == "1d" and start == day_ms(day)
        }
        answers = part[which]
        assert cell["events",].value == answers["events"]
        assert {k[1]: v.value for k, v in cell.items() if k[0] == "events_by_type"} == answers["events_by_type"]
        revenue = {k[1]: f"{v.value:.2f}" for k, v in cell.items() if k[0] == "revenue"}
        assert revenue == answers["revenue_by_country"]
        assert cell["unique_visitors",].value == answers["distinct_users"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    first, again, other = (make(replace(OPTIONS, seed=seed))[1] for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_records_are_sent_in_the_order_of_their_timestamps_and_history_ends_now() -> None:
    generation, log = make(OPTIONS)
    times = [record.record_time for record in log]
    assert times == sorted(times)
    assert times[0] >= day_ms(generation.document("shop")["closed_days"][0])
    assert max(times[:6_000]) < NOON
    assert min(times[6_000:]) >= NOON + 3_000


def test_out_of_order_events_come_after_later_ones_and_still_count() -> None:
    generation, log = make(replace(OPTIONS, late=0, duplicates=0, bad=0, oversized=0, id_conflicts=0))
    behind, newest = 0, 0
    for record in log:
        event_time = json.loads(record.value or b"")["ts"]
        behind += event_time < newest - 10_000
        newest = max(newest, event_time)
    assert 0 < behind <= 150
    assert generation.document("shop")["total"]["dispositions"]["counted"] == len(log)


def test_live_late_events_never_change_a_closed_day() -> None:
    generation, log = make(replace(OPTIONS, events=2_000, late=100), JUST_AFTER_MIDNIGHT)
    closed = generation.document("shop")["closed_days"]
    end_of_closed = day_ms(closed[-1]) + 86_400_000
    assert closed[-1] == "2025-03-03"
    for record in log[2_000:]:
        event = record.value or b""
        if event.endswith(b"}") and b'"ts"' in event:
            assert json.loads(event)["ts"] >= end_of_closed


def test_every_purchase_follows_a_checkout_of_the_same_amount() -> None:
    _, log = make(replace(OPTIONS, late=0, duplicates=0, out_of_order=0, bad=0, oversized=0, id_conflicts=0, live=0))
    carts: dict[str, str] = {}
    purchases = 0
    for record in log:
        event = json.loads(record.value or b"")
        if event["event_type"] == "checkout":
            carts[event["user_id"]] = event["amount"]
        if event["event_type"] == "purchase" and event["user_id"] in carts:
            purchases += event["amount"] == carts[event["user_id"]]
    assert purchases > 100


def test_asking_for_more_late_events_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(TrafficError, match="`late` events are asked for; got room for"):
        make(GenerateOptions(events=100, late=100, duplicates=0, out_of_order=0, bad=0))


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(TrafficError, match="`late` must not be negative; got -1"):
        GenerateOptions(late=-1)


def test_a_catalog_of_other_events_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    text = SHOP.read_text(encoding="utf-8").replace("event_id: event_id", "event_id: uuid")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TrafficError, match="the catalog of source `shop` needs `uuid`"):
        Generation(load_catalog(file), GenerateOptions(), NOON)


def test_a_catalog_of_another_format_is_refused() -> None:
    with pytest.raises(TrafficError, match="needs a catalog with `format` `json`; got `avro`"):
        Generation(replace(load_catalog(SHOP), format="avro"), GenerateOptions(), NOON)


def test_a_catalog_that_requires_what_only_some_events_have_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "strict.yaml"
    text = SHOP.read_text(encoding="utf-8").replace(
        "user_id: {type: string}", "user_id: {type: string, required: true}"
    )
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TrafficError, match="not every event of the shop has `user_id`.*remove `required`"):
        Generation(load_catalog(file), GenerateOptions(), NOON)


def test_a_catalog_says_by_its_fields_whether_it_is_the_shops_or_the_devices() -> None:
    assert kind_of(load_catalog(SHOP)).name == "the shop"
    assert kind_of(load_catalog(SHOP.with_name("devices.yaml"))).name == "the devices"


def test_the_message_key_is_the_user_or_else_the_product_and_of_a_reading_the_device() -> None:
    generation = Generation(load_catalog(SHOP), replace(OPTIONS, bad=0, oversized=0), NOON)
    for batch in generation.history():
        for record in generation.outgoing(batch):
            event = json.loads(record.value)
            assert record.key == (event.get("user_id") or event["product"]).encode()
    devices = Generation(load_catalog(SHOP.with_name("devices.yaml")), GenerateOptions(events=500, bad=0), NOON)
    for batch in devices.history():
        assert all(record.key == json.loads(record.value)["device"].encode() for record in devices.outgoing(batch))
