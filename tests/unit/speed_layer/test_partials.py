"""What a chunk of the log becomes."""

import json
from typing import Any

import msgspec
import polars as pl
from polars.testing import assert_frame_equal

from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.disposition import Chunk, PartitionReader
from metrics.fold import groups, merge_states, partial_states
from speed_layer import partials
from speed_layer.partials import SLICES_PER_KEY, Receipt
from speed_layer.sessions import BLOCK_MS

START = 1_700_000_000_000 // 3_600_000 * 3_600_000
TREE: dict[str, Any] = {
    "source": "shop",
    "topic": "events",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "fields": {"user": "string", "country": "string"},
    "metrics": {
        "events": {"agg": "count", "by": ["country"], "window": "tumbling 1m"},
        "visitors": {"agg": "distinct(user)", "window": "tumbling 1m"},
    },
}
BUCKETS = 4


def catalog() -> Catalog:
    return parse_catalog(TREE, {}, "test")


def chunk(events: list[tuple[int, str]]) -> Chunk:
    times = [START + at for at, _ in events]
    values: list[bytes | None] = [
        json.dumps({"id": str(n), "ts": t, "user": f"u{n}", "country": c}).encode()
        for n, (t, (_, c)) in enumerate(zip(times, events, strict=True))
    ]
    return PartitionReader(catalog()).read(3, list(range(len(events))), times, values)


def receipt(end: int) -> Receipt:
    return Receipt(3, 0, 0, end, 0, None)


def test_the_parts_of_a_group_are_its_states_again() -> None:
    events = [(n * 90_000, f"c{n % 7}") for n in range(200)]

    elements = partials.elements(chunk(events), groups(catalog()), BUCKETS, receipt(200))

    for group in groups(catalog()):
        own = [partials.from_ipc(partials.decode(v).payload) for k, v in elements if k.startswith(f"{group.id}|")]
        whole = partial_states(group, chunk(events).counted)
        assert_frame_equal(merge_states(group, pl.concat(own)), merge_states(group, whole))


def test_a_row_has_one_key_whatever_chunk_it_comes_in() -> None:
    keys: dict[tuple[int, str], set[str]] = {}
    for events in ([(0, "de"), (0, "fr")], [(30_000, "de")], [(59_000, "fr"), (10, "de"), (0, "it")]):
        for key, value in partials.elements(chunk(events), groups(catalog())[:1], BUCKETS, receipt(9)):
            if key.startswith("1m:country|"):
                for row in partials.from_ipc(partials.decode(value).payload).iter_rows(named=True):
                    keys.setdefault((row["slice_start"], row["country"]), set()).add(key)

    assert len(keys) == 3
    assert all(len(found) == 1 for found in keys.values())


def test_neighbouring_slices_share_a_key() -> None:
    events = [(n * 60_000, "de") for n in range(SLICES_PER_KEY)]

    elements = partials.elements(chunk(events), groups(catalog())[:1], BUCKETS, receipt(len(events)))

    assert 1 <= sum(key.startswith("1m:country|") for key, _ in elements) <= 2


def test_every_element_says_how_many_there_are() -> None:
    elements = partials.elements(chunk([(0, "de"), (60_000, "fr")]), groups(catalog()), BUCKETS, receipt(2))

    receipts = {partials.decode(value).receipt for _, value in elements}

    assert receipts == {Receipt(3, 0, 0, 2, len(elements), None)}


def test_a_chunk_of_dead_letters_still_has_an_element() -> None:
    dead = PartitionReader(catalog()).read(3, [0, 1], [START, START], [b"{", None])

    [(key, value)] = partials.elements(dead, groups(catalog()), BUCKETS, receipt(2))

    assert key == "ledger|0|3"
    assert msgspec.msgpack.decode(partials.decode(value).payload, strict=False) == {0: [2, 0, 0, 0, 0, 2]}


def test_a_beat_has_no_parts() -> None:
    key, value = partials.beat(Receipt(3, 0, 7, 7, 5, 99))

    assert key == "beat|3"
    assert partials.decode(value).receipt == Receipt(3, 0, 7, 7, 0, 99)


def test_all_instants_of_a_session_key_have_one_key_whatever_their_time() -> None:
    visits = {"agg": "count", "by": ["country"], "window": "session 30m"}
    sessions = parse_catalog(TREE | {"key": "user", "metrics": {"visits": visits}}, {}, "test")
    [group] = groups(sessions)
    values: list[bytes | None] = [
        json.dumps({"id": str(n), "ts": START + n * 7_200_000, "user": f"u{n % 5}", "country": f"c{n % 3}"}).encode()
        for n in range(100)
    ]
    read = PartitionReader(sessions).read(3, list(range(100)), [START + n * 7_200_000 for n in range(100)], values)

    elements = [e for e in partials.elements(read, (group,), BUCKETS, receipt(100)) if not e[0].startswith("ledger")]

    assert all(key.startswith(f"{group.id}|session|") for key, _ in elements)
    own = [partials.from_ipc(partials.decode(value).payload) for _, value in elements]
    users = [set(frame["session_key"]) for frame in own]
    assert sum(map(len, users)) == len(set().union(*users)) == 5
    assert_frame_equal(merge_states(group, pl.concat(own)), merge_states(group, partial_states(group, read.counted)))
    for (_, value), frame in zip(elements, own, strict=True):
        assert set(partials.decode(value).arrived) == set(frame["slice_start"] // BLOCK_MS)
