"""What the index of the log says of each block, and what it says of the days of a run."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from batch_layer.block_index import BLOCKS, HOUR_MS, blocks_of, checksum_of, counted, extents, latest_ms
from batch_layer.log_reader import Records
from infra.catalog_file import load_catalog
from metrics.event import Decoder

CATALOG = load_catalog(Path(__file__).parents[2] / "data" / "clickstream.yaml")
BLOCK = 10_000
NOON = 473_364 * HOUR_MS


def log(*places: tuple[int, int, int]) -> Records:
    """Records of (offset, event time, record timestamp)."""
    time = CATALOG.event_time_field
    values = [json.dumps(event(offset) | {time: happened}).encode() for offset, happened, _ in places]
    count = len(places)
    return Records(
        [offset for offset, *_ in places], [sent for *_, sent in places], [None] * count, values, [None] * count
    )


def event(number: int) -> dict[str, object]:
    sample = {"string": "x", "int": 1, "float": 1.0, "bool": True, "decimal": "1.0"}
    return {field.name: sample[field.type] for field in CATALOG.fields.values()} | {CATALOG.event_id: f"e{number}"}


def index(records: Records, begin: int, end: int, origins: dict[int, int] | None = None) -> pl.DataFrame:
    decoded = Decoder(CATALOG).decode(2, records.offsets, records.times, records.values)
    return blocks_of(2, (begin, end), records, decoded, origins or {})


def test_each_block_counts_its_events_by_the_hour_in_which_they_happened():
    found = index(log((9_998, NOON, NOON), (9_999, NOON - 1, NOON + 5), (10_000, NOON, NOON + 7)), 9_990, 10_001)
    assert dict(found.schema) == BLOCKS
    assert found.select("topic_partition", "block", "begin", "end", "records").rows() == [
        (2, 0, 9_990, 10_000, 2),
        (2, 1, 10_000, 10_001, 1),
    ]
    hour = NOON // HOUR_MS
    assert found["events"].to_list() == [
        [{"key": hour - 1, "value": 1}, {"key": hour, "value": 1}],
        [{"key": hour, "value": 1}],
    ]
    assert [{each["key"]: each["value"] for each in row} for row in found["latest"].to_list()] == [
        {hour - 1: 6, hour: 0},
        {hour: 7},
    ]


def test_a_block_without_records_is_known_to_be_empty():
    found = index(log((0, NOON, NOON)), 0, 25_000)
    assert found.select("begin", "end", "records").rows() == [(0, BLOCK, 1), (BLOCK, 2 * BLOCK, 0), (20_000, 25_000, 0)]
    assert found["events"].list.len().to_list() == [1, 0, 0]


def test_dead_letters_are_counted_by_the_hour_in_which_they_were_sent_and_repairs_are_named():
    records = log((0, NOON, NOON), (1, NOON, NOON), (2, NOON, NOON + HOUR_MS))
    records.values[1] = b"{"
    found = index(records, 0, 3, {2: 1})
    assert found["dead_letters"].to_list() == [[{"key": NOON // HOUR_MS, "value": 1}]]
    assert found["repairs"].to_list() == [[1]]
    assert Counter(each["value"] for each in found["events"][0]) == {2: 1}


@pytest.mark.parametrize("part", ["offsets", "times", "keys", "values", "headers"])
def test_a_checksum_sees_every_part_of_a_record(part: str):
    records = log((0, NOON, NOON), (1, NOON, NOON))
    before = checksum_of(records, 0, 2)
    changed = {"offsets": 3, "times": NOON + 1, "keys": b"", "values": None, "headers": [("a", b"b")]}[part]
    other = replace(records, **{part: [getattr(records, part)[0], changed]})
    assert checksum_of(other, 0, 2) != before
    assert checksum_of(other, 0, 1) == checksum_of(records, 0, 1)


def test_an_extent_reaches_over_all_blocks_that_hold_an_event_of_the_days_however_late():
    day = (NOON, NOON + HOUR_MS)
    rows = log((5, NOON - 1, NOON), (10_005, NOON, NOON), (20_005, NOON - 1, NOON), (30_005, NOON + 9, NOON + 99))
    found = index(rows, 0, 50_000)
    assert extents(found, [day]) == {2: (10_000, 40_000)}
    assert counted(found, day) == (2, 0)
    assert latest_ms(found, [day]) == 90
    assert latest_ms(found, [(NOON - HOUR_MS, NOON)]) == NOON + 1 - NOON
    assert extents(found, [(NOON + HOUR_MS, NOON + 2 * HOUR_MS)]) == {}
    assert latest_ms(found.clear(), [day]) == 0


def test_an_extent_reaches_to_what_repairs_its_dead_letters():
    records = log((10_005, NOON, NOON), (10_006, NOON, NOON), (40_000, NOON - HOUR_MS, NOON + HOUR_MS))
    records.values[1] = b"{"
    found = index(records, 0, 50_000, {40_000: 10_006})
    assert extents(found, [(NOON, NOON + HOUR_MS)]) == {2: (10_000, 50_000)}
    assert counted(found, (NOON, NOON + HOUR_MS)) == (1, 1)
