"""Which published days have to be computed again."""

from datetime import date

import polars as pl

from batch_layer.block_index import BLOCKS
from batch_layer.manifest import Indexed
from batch_layer.stale import days_in, stale_days

FIRST, SECOND, THIRD = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)
HOUR = (FIRST - date(1970, 1, 1)).days * 24


def index(*blocks: tuple[dict[int, int], dict[int, int]]) -> pl.DataFrame:
    """Blocks of (events by hour of the first day, dead letters by hour)."""
    rows = [
        {
            "topic_partition": 0,
            "block": number,
            "begin": number * 10_000,
            "end": (number + 1) * 10_000,
            "records": 0,
            "checksum": 0,
            "latest": [],
            "repairs": [],
            "events": [{"key": HOUR + hour, "value": n} for hour, n in events.items()],
            "dead_letters": [{"key": HOUR + hour, "value": n} for hour, n in dead.items()],
        }
        for number, (events, dead) in enumerate(blocks)
    ]
    return pl.DataFrame(rows, schema=BLOCKS)


LOG = index(({0: 3, 23: 2}, {}), ({24: 5, 1: 1}, {25: 1}), ({}, {50: 2}))


def test_days_are_those_of_events_and_of_dead_letters():
    assert days_in(LOG) == [FIRST, SECOND, THIRD]
    assert days_in(LOG.clear()) == []


def test_a_day_whose_run_has_seen_all_is_not_stale():
    seen = {FIRST: ("r1", Indexed(6, 0)), SECOND: ("r1", Indexed(5, 1)), THIRD: ("r2", Indexed(0, 2))}
    assert stale_days(LOG, seen) == []


def test_a_day_is_stale_by_an_event_or_a_dead_letter_that_came_since():
    seen = {FIRST: ("r1", Indexed(5, 0)), SECOND: ("r1", Indexed(5, 0)), THIRD: ("r2", Indexed(0, 2))}
    found = stale_days(LOG, seen)
    assert [(one.day, one.why) for one in found] == [
        (FIRST, "since run `r1` 1 events and 0 dead letters came"),
        (SECOND, "since run `r1` 0 events and 1 dead letters came"),
    ]


def test_a_day_that_was_never_published_is_stale_as_is_one_whose_run_said_nothing():
    found = stale_days(LOG, {SECOND: ("old", None), THIRD: ("r2", Indexed(0, 2))})
    assert [(one.day, one.why) for one in found] == [
        (FIRST, "never published; the log has 6 events and 0 dead letters"),
        (SECOND, "run `old` did not say how much it found"),
    ]
