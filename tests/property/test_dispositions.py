"""What becomes of a record is the same wherever reading began and however much was read at once."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from metrics.catalog_build import parse_catalog
from metrics.disposition import COUNTED, DUPLICATE, ID_CONFLICT, PartitionReader

HORIZON = 12
CATALOG = parse_catalog(
    {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "dedup_horizon": HORIZON,
        "fields": {"user": "string"},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
    },
    {},
    "test",
)
SENT = 1_780_000_000_000
Events = list[tuple[int, int]]


def dispositions(events: Events, start: int, size: Callable[[], int]) -> dict[int, str]:
    """By offset, as a reader says that begins at an offset and has remembered the horizon before it."""
    reader, most, found = PartitionReader(CATALOG), 1, dict[int, str]()
    at = max(0, start - HORIZON)
    while at < len(events):
        end = min(at + size(), start if at < start else len(events))
        values: list[Any] = [json.dumps({"id": f"e{name}", "ts": SENT - ago}).encode() for name, ago in events[at:end]]
        read = reader.remember if at < start else reader.read
        chunk = read(0, range(at, end), [SENT] * (end - at), values)
        if chunk is not None:
            found |= dict(chunk.events.select("offset", "disposition").rows())
        most, at = max(most, end - at), end
        assert reader.remembered <= 2 * (HORIZON + most)
    return found


def slowly(events: Events) -> dict[int, str]:
    """The rule as it is written, looked up backwards for each event."""
    found = {}
    for offset, (name, ago) in enumerate(events):
        near = [other for other in events[max(0, offset - HORIZON) : offset] if other[0] == name]
        found[offset] = COUNTED if not near else DUPLICATE if near[-1][1] == ago else ID_CONFLICT
    return found


def repeating(drawn: Events) -> Events:
    """Events of which one that goes back some offsets has the id of the event there."""
    names: list[int] = []
    for number, (back, _) in enumerate(drawn):
        names.append(names[-back] if 0 < back <= number else number)
    return [(name, ago) for name, (_, ago) in zip(names, drawn, strict=True)]


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 0, 0, 1, HORIZON - 1, HORIZON, HORIZON + 1]), st.integers(0, 1)),
        min_size=3 * HORIZON,
        max_size=10 * HORIZON,
    ).map(repeating),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([1, 3, HORIZON, 3 * HORIZON]),
    st.randoms(use_true_random=False),
)
def test_a_reader_may_begin_anywhere_and_read_in_any_chunks(
    events: Events, begin: float, most: int, chunks: Random
) -> None:
    start = int(begin * len(events))

    found = dispositions(events, start, lambda: chunks.randint(1, most))

    assert found == {offset: kind for offset, kind in slowly(events).items() if offset >= start}
