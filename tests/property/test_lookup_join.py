"""The join of events with versions agrees with a slow loop, whatever is known, and whoever reads in which chunks."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from metrics.catalog import Field, Lookup
from metrics.lookup import RECORDS, Known, VersionReader, joined, without_versions

LOOKUP = Lookup(
    "customers",
    "customers.v1",
    "user",
    (Field("segment", "string"), Field("tier", "string", default="none"), Field("limit", "decimal", 2)),
)
KEYS = ["a", "b", "ä", ""]
PARTITIONS = 2
NAMES = ["f_customers_segment", "f_customers_tier", "f_customers_limit"]

Record = tuple[int, int, int, bytes | None, bytes | None]

values = st.one_of(
    st.none(),
    st.sampled_from([b"{", b"[]", b'{"segment": 1}', b'{"limit": "1.234"}', b"\xff"]),
    st.fixed_dictionaries(
        {}, optional={"segment": st.sampled_from(["x", "y", None]), "tier": st.just("gold"), "limit": st.just("1.50")}
    ).map(lambda value: json.dumps(value).encode()),
)
keys = st.one_of(st.sampled_from([key.encode() for key in KEYS]), st.sampled_from([None, b"\xff"]))


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """Records of a lookup's topic: offsets grow with gaps, timestamps go forth and back."""
    records = []
    offsets = [0] * PARTITIONS
    for topic_partition, time, key, value in draw(
        st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.integers(0, 20), keys, values), max_size=30)
    ):
        offsets[topic_partition] += draw(st.integers(0, 2))
        records.append((topic_partition, offsets[topic_partition], time, key, value))
        offsets[topic_partition] += 1
    return records


@st.composite
def event_rows(draw: st.DrawFn) -> pl.DataFrame:
    """Events in the order of one partition's offsets; times as they come."""
    rows = draw(st.lists(st.tuples(st.sampled_from([*KEYS, "nobody", None]), st.integers(-1, 22)), max_size=20))
    return pl.DataFrame(
        [(3, 10 + number, time, key) for number, (key, time) in enumerate(rows)],
        schema={"topic_partition": pl.Int32, "offset": pl.Int64, "event_time": pl.Int64, "f_user": pl.String},
        orient="row",
    )


def frame(records: Sequence[Record]) -> pl.DataFrame:
    return pl.DataFrame(records, schema=RECORDS, orient="row")


def is_version(record: Record) -> bool:
    *_, key, value = record
    if key is None or key == b"\xff":
        return False
    if value is None:
        return True
    try:
        body = json.loads(value)
    except ValueError:
        return False
    return isinstance(body, dict) and body.get("segment") != 1 and body.get("limit") != "1.234"


def slowly(key: str | None, time: int, records: Sequence[Record], before: dict[int, int] | None) -> list[Any]:
    """What an event is joined with: the version, among those known, that is valid at its time and was written last."""
    best: tuple[tuple[int, int, int], bytes | None] | None = None
    reached: dict[tuple[int, bytes | None], int] = {}
    for record in records:
        topic_partition, offset, record_time, own, value = record
        if not is_version(record):
            continue
        reached[topic_partition, own] = valid_from = max(record_time, reached.get((topic_partition, own), record_time))
        known = before is None or offset < before.get(topic_partition, 0)
        place = (valid_from, topic_partition, offset)
        if known and key is not None and own == key.encode() and valid_from <= time and (not best or place > best[0]):
            best = (place, value)
    body = json.loads(best[1]) if best and best[1] else {}
    limit = body.get("limit")
    return [body.get("segment"), body.get("tier") or "none", limit]


def answer(rows: pl.DataFrame) -> list[list[Any]]:
    return [[s, t, None if x is None else str(x)] for s, t, x in rows.select(NAMES).iter_rows()]


@given(logs(), event_rows())
def test_an_event_is_joined_with_the_version_that_is_valid_at_its_time(
    records: list[Record], events: pl.DataFrame
) -> None:
    versions = VersionReader(LOOKUP).read(frame(records)).versions
    found = joined(events, LOOKUP, versions)
    assert found.select(events.columns).equals(events)
    assert answer(found) == [slowly(key, time, records, None) for _, _, time, key in events.iter_rows()]


@given(
    logs(),
    event_rows(),
    st.lists(st.tuples(st.integers(8, 32), st.integers(1, 9), st.integers(0, 40), st.integers(0, 40)), max_size=6),
)
def test_an_event_is_joined_with_what_was_known_when_it_was_read(
    records: list[Record], events: pl.DataFrame, written: list[tuple[int, int, int, int]]
) -> None:
    rows = [(3, start, start + length, {0: first, 1: second}) for start, length, first, second in written]
    # another partition of the events' topic, and a row that knew of one partition only
    rows += [(4, 0, 100, {0: 0}), (3, 28, 30, {1: 7})]
    known = Known.of(rows)

    def at(offset: int) -> dict[int, int] | None:
        covering = [positions for number, start, end, positions in rows if number == 3 and start <= offset < end]
        return covering[0] if covering else None

    versions = VersionReader(LOOKUP).read(frame(records)).versions
    found = joined(events, LOOKUP, versions, known.before(events, range(PARTITIONS)))
    assert answer(found) == [slowly(key, time, records, at(offset)) for _, offset, time, key in events.iter_rows()]
    for start in range(5, 45):
        assert known.reach(3, start) == next(o for o in itertools.count(start) if at(o) is None)


@given(logs(), st.integers(0, 30))
def test_versions_do_not_depend_on_the_chunks_in_which_records_are_read(records: list[Record], cut: int) -> None:
    whole = VersionReader(LOOKUP).read(frame(records))
    reader = VersionReader(LOOKUP)
    parts = [reader.read(frame(records[:cut])), reader.read(frame(records[cut:]))]
    assert pl.concat([part.versions for part in parts]).equals(whole.versions)
    assert pl.concat([part.dead_letters for part in parts]).equals(whole.dead_letters)
    assert whole.versions.height + whole.dead_letters.height == len(records)


def test_without_versions_every_event_has_the_defaults() -> None:
    events = pl.DataFrame({"event_time": [1], "f_user": ["a"]})
    assert answer(joined(events, LOOKUP, without_versions([LOOKUP])["customers"])) == [[None, "none", None]]
