"""Sessions in the speed layer: what is published of them, and what is kept for them."""

import json
import random
from collections import defaultdict
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_harness import Job, Row

from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.disposition import PartitionReader
from metrics.fold import groups, partial_states
from speed_layer.chains import chains_of
from speed_layer.sessions import BLOCK_MS, arrivals, published_sessions

START = 1_700_000_000_000 // 86_400_000 * 86_400_000
MINUTE = 60_000
DAY = 86_400_000
GAP, MOST = 30 * MINUTE, 60 * MINUTE
TREE: dict[str, Any] = {
    "source": "shop",
    "topic": "events",
    "event_id": "id",
    "event_time": {"field": "ts", "unit": "ms"},
    "key": "user",
    "allowed_lateness": "1h",
    "fields": {"user": "string", "kind": "string", "page": "string"},
    "metrics": {
        "visits": {"agg": "count", "by": ["kind"], "window": "session 30m max 1h"},
        "pages": {"agg": "top(page, 3)", "by": ["kind"], "window": "session 30m max 1h"},
        "buys": {"agg": "count", "where": "page = 'buy'", "window": "session 30m max 1h"},
    },
}


def catalog(**changes: Any) -> Catalog:
    return parse_catalog(TREE | changes, {}, "test")


def event(minute: float, user: str = "ann", kind: str = "web", page: str = "home", **more: Any) -> Row:
    return {"ts": START + round(minute * MINUTE), "user": user, "kind": kind, "page": page} | more


def shown(job: Job, metric: str = "visits") -> list[tuple[Any, ...]]:
    """Key, first and last minute, minute of the end, events."""
    minutes = [
        (row["session_key"], *((row[name] - START) / MINUTE for name in ("window_start", "window_end")), row["events"])
        for row in job.sessions(metric)
    ]
    return [(key, start, end, events) for key, start, end, events in minutes]


def sessions_of(events: list[Row], by: tuple[str, ...]) -> dict[tuple[Any, ...], int]:
    """The slow and obvious way: by key, dimensions, start, end and length, the number of events."""
    found: dict[tuple[Any, ...], int] = {}
    times: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in events:
        times[row["user"], *(row[name] for name in by)].append(row["ts"])
    for key, own in times.items():
        parts: list[list[int]] = []
        for time in sorted(own):
            if parts and time - parts[-1][-1] < GAP and time - parts[-1][0] < MOST:
                parts[-1].append(time)
            else:
                parts.append([time])
        for part, following in zip(parts, [*parts[1:], [float("inf")]], strict=True):
            end = min(part[-1] + GAP, following[0])
            found[*key, part[0], end, part[-1] - part[0]] = len(part)
    return found


def found_by(job: Job, metric: str, by: tuple[str, ...]) -> dict[tuple[Any, ...], int]:
    names = ("session_key", *by, "window_start", "window_end", "length_ms")
    return {tuple(row[name] for name in names): row["events"] for row in job.sessions(metric)}


def test_an_event_between_two_sessions_makes_them_one() -> None:
    job = Job(catalog())

    job.bundle([event(0), event(40)])
    assert shown(job) == [("ann", 0, 30, 1), ("ann", 40, 70, 1)]

    job.bundle([event(20)])
    assert shown(job) == [("ann", 0, 70, 3)]


def test_a_start_that_is_no_more_becomes_a_tombstone_of_the_chain_that_swallowed_it() -> None:
    job = Job(catalog())
    job.bundle([event(0), event(40), event(41, page="buy")])

    batch = job.bundle([event(20)])

    rows = {row["window_start"]: row for row in batch.sessions["pages"].iter_rows(named=True)}
    tombstone = rows[START + 40 * MINUTE]
    assert (tombstone["is_deleted"], tombstone["chain_events"], tombstone["events"]) == (1, 4, 0)
    assert tombstone["counts"] == []
    assert (tombstone["session_key"], tombstone["kind"]) == ("ann", "web")
    assert rows[START]["is_deleted"] == 0
    assert rows[START]["chain_events"] == 4
    assert rows[START]["counts"] == [{"key": "buy", "value": 1}, {"key": "home", "value": 3}]


def test_a_session_that_grows_too_long_is_cut_and_its_parts_are_cut_anew_when_the_chain_grows_at_its_front() -> None:
    job = Job(catalog())
    job.bundle([event(20 * n) for n in range(1, 8)])
    assert shown(job) == [("ann", 20, 80, 3), ("ann", 80, 140, 3), ("ann", 140, 170, 1)]

    job.bundle([event(0)])

    assert shown(job) == [("ann", 0, 60, 3), ("ann", 60, 120, 3), ("ann", 120, 170, 2)]


def test_a_bundle_publishes_only_sessions_that_it_changes() -> None:
    job = Job(catalog())
    job.bundle([event(0), event(0, user="bob"), event(300), event(0, kind="app")])

    batch = job.bundle([event(10)])

    assert batch.sessions["visits"].select("session_key", "kind", "events").rows() == [("ann", "web", 2)]
    assert set(batch.sessions) == {"visits", "pages"}
    assert not batch.panes


def test_a_metric_has_the_sessions_of_the_events_that_it_selects() -> None:
    job = Job(catalog())

    job.bundle([event(0, page="buy"), event(20), event(40, page="buy")])

    assert shown(job) == [("ann", 0, 70, 3)]
    assert shown(job, "buys") == [("ann", 0, 30, 1), ("ann", 40, 70, 1)]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from(["ann", "bob"]), st.sampled_from(["web", "app"])),
        min_size=1,
        max_size=40,
    ),
    st.lists(st.integers(1, 8), min_size=1, max_size=10),
    st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_and_the_chunks_change_no_final_row(
    drawn: list[tuple[int, str, str]], sizes: list[int], chance: random.Random
) -> None:
    job = Job(catalog(allowed_lateness="7d"))  # all of them count, whenever they are sent
    events = [
        event(minute, user, kind, chance.choice(["home", "buy"]), sent=START + 300 * MINUTE)
        for minute, user, kind in drawn
    ]
    chance.shuffle(events)
    left = list(events)
    while left:
        size = chance.choice(sizes)
        job.bundle(left[:size], fails_first=chance.random() < 0.2)
        left = left[size:]
        if chance.random() < 0.2:
            job.restart()

    assert found_by(job, "visits", ("kind",)) == sessions_of(events, ("kind",))
    assert found_by(job, "buys", ()) == sessions_of([e for e in events if e["page"] == "buy"], ())


def test_a_replay_never_replaces_a_row_by_a_less_complete_one() -> None:
    events = [event(minute, user) for user in ("ann", "bob") for minute in (0, 40, 20, 100, 75)]
    job = Job(catalog())
    for each in events:
        job.bundle([each])
    before = shown(job)

    replay = Job(catalog())
    replay.tables = job.tables
    for each in events:
        replay.bundle([each])
        assert shown(replay) == before


def test_settled_chains_are_forgotten_so_that_memory_does_not_grow_with_history() -> None:
    job = Job(catalog())
    events = [event(minute, user=f"u{minute % 7}") for minute in range(0, 60 * 24 * 30, 11)]
    most, per_day = 0, 24 * 60 / 11
    for first in range(0, len(events), 50):
        chunk = events[first : first + 50]
        job.bundle(chunk)
        job.advance(chunk[-1]["ts"] - 10_000)
        most = max(most, job.state_rows, job.memory_rows)

    assert most < 2 * (2.5 * per_day)  # two groups
    assert found_by(job, "visits", ("kind",)) == sessions_of(events, ("kind",))


def test_a_history_that_comes_in_one_chunk_is_forgotten_as_the_watermark_moves() -> None:
    job = Job(catalog())
    events = [event(minute, user=f"u{minute % 7}") for minute in range(0, 60 * 24 * 30, 11)]
    job.bundle(events)

    job.advance(events[-1]["ts"] - 10_000)

    assert job.state_rows < 2 * (2.5 * 24 * 60 / 11)
    later = [event(60 * 24 * 40, user=f"u{n}") for n in range(7)]
    job.bundle(later)
    job.advance(later[0]["ts"])
    assert (job.state_rows, job.memory_rows) == (7, 7)
    assert found_by(job, "visits", ("kind",)) == sessions_of([*events, *later], ("kind",))


def test_a_watermark_that_runs_ahead_cuts_no_session() -> None:
    job = Job(catalog())
    events = [event(10 * n, user=f"u{n % 3}") for n in range(200)]
    for first in range(0, len(events), 30):
        job.bundle(events[first : first + 30])
        job.advance(events[-1]["ts"] + 30 * DAY)

    assert found_by(job, "visits", ("kind",)) == sessions_of(events, ("kind",))


@pytest.mark.parametrize("restarts", [False, True])
def test_of_a_chain_that_never_ends_only_its_last_days_are_kept(restarts: bool) -> None:  # noqa: FBT001
    job = Job(catalog(), buckets=1)
    events = [event(25 * n, page="buy" if n % 5 < 3 else "home") for n in range(60 * 24 * 20 // 25)]
    most = 0
    for first in range(0, len(events), 40):
        chunk = events[first : first + 40]
        chunk = [*chunk[1::2], *chunk[::2]]
        job.bundle(chunk, fails_first=first % 3 == 0)
        job.advance(chunk[-1]["ts"] - 10_000)
        if restarts:
            job.restart()
        most = max(most, job.state_rows)

    assert most < 2 * (3 * 24 * 60 / 25)
    assert found_by(job, "visits", ("kind",)) == sessions_of(events, ("kind",))
    assert found_by(job, "buys", ()) == sessions_of([e for e in events if e["page"] == "buy"], ())
    assert job.sessions("visits")[-1]["chain_events"] == len(events)


def test_a_bundle_is_laid_beside_what_is_known_and_copies_none_of_it() -> None:
    job = Job(catalog(), buckets=1)
    job.bundle([event(n, user=f"u{n}") for n in range(100)])

    job.bundle([event(99, user="u99"), event(100, user="u0")])

    [known] = job._memory
    assert [part.len() for part in known["slice_start"].get_chunks()] == [100, 2]
    assert [row for row in shown(job) if row[0] == "u99"] == [("u99", 99, 129, 2)]


def test_a_short_chain_grows_without_a_look_at_its_instants() -> None:
    [group] = [group for group in groups(catalog()) if group.by]
    metric = next(metric for metric in group.metrics if metric.name == "visits")

    def instants(*minutes: int) -> pl.DataFrame:
        reader = PartitionReader(catalog())
        values = [json.dumps(event(minute, id=f"e{minute}")).encode() for minute in minutes]
        chunk = reader.read(0, range(len(values)), [START + 60 * MINUTE] * len(values), values)
        return partial_states(group, chunk.counted)

    chains = chains_of(group, metric, instants(0, 40))
    rows, chains = published_sessions(group, metric, chains, None, [instants(20)])

    assert rows.select("window_start", "length_ms", "chain_events", "events", "is_deleted").rows() == [
        (START, 40 * MINUTE, 3, 3, 0),
        (START + 40 * MINUTE, 0, 3, 0, 1),
    ]
    assert chains.select("window_start", "chain_events").rows() == [(START, 3)]


def test_one_instant_that_comes_again_and_again_does_not_fill_the_state() -> None:
    job = Job(catalog(), buckets=1)
    for n in range(60):
        job.bundle([event(0, id=f"e{n}")])

    assert shown(job) == [("ann", 0, 30, 60)]
    assert max(job.state_rows, job.memory_rows) < 60


def test_sessions_go_on_however_long_nothing_comes() -> None:
    job = Job(catalog())
    job.bundle([event(0)])

    job.lapse()
    job.bundle([event(20)])

    assert shown(job) == [("ann", 0, 50, 2)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_an_older_file_that_is_appended_later_has_whole_sessions(size: int) -> None:
    job = Job(catalog(), buckets=1)
    newer, older = [event(60 * 24 * 9)], [event(10 * n, user=f"u{n % 3}") for n in range(150)]
    left = [*newer, *older]
    while left:
        job.bundle(left[:size])
        job.advance(newer[0]["ts"] - 10_000)
        left = left[size:]

    assert found_by(job, "visits", ("kind",)) == sessions_of([*newer, *older], ("kind",))


def test_arrivals_say_how_far_the_log_was_when_events_came() -> None:
    events = pl.DataFrame({"event_time": [0, BLOCK_MS, 1], "record_time": [5, BLOCK_MS, 1]})

    assert arrivals(events, None) == {0: BLOCK_MS, 1: BLOCK_MS}
    assert arrivals(events, 7 * BLOCK_MS) == {0: 7 * BLOCK_MS, 1: 7 * BLOCK_MS}
    assert arrivals(events[:1], None) == {0: 5}
