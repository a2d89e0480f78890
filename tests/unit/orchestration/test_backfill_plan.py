"""Stale days are asked for in ranges, a few an hour, and not twice for the same reason."""

from datetime import UTC, date, datetime, timedelta

from batch_layer.manifest import Indexed
from batch_layer.stale import StaleDay
from orchestration.backfill_plan import Asked, Decision, decide, ranges

NOON = datetime(2026, 3, 9, 12, tzinfo=UTC)


def stale(*days: int, events: int = 5) -> list[StaleDay]:
    return [StaleDay(date(2026, 3, day), "r1", Indexed(1, 0), Indexed(events, 0)) for day in days]


def after(decision: Decision, hours: float = 0.1) -> tuple[Asked, datetime]:
    return Asked.from_cursor(decision.asked.as_cursor()), NOON + timedelta(hours=hours)


def test_neighbouring_days_are_one_range():
    assert ranges([date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 3)]) == [
        (date(2026, 2, 28), date(2026, 3, 1)),
        (date(2026, 3, 3), date(2026, 3, 3)),
    ]
    assert ranges([]) == []


def test_what_was_asked_for_is_not_asked_for_again_until_more_has_come():
    first = decide(stale(1, 2, 4), Asked(), NOON)
    assert first.ranges == ((date(2026, 3, 1), date(2026, 3, 2)), (date(2026, 3, 4), date(2026, 3, 4)))
    assert decide(stale(1, 2, 4), *after(first)).ranges == ()
    assert decide([*stale(1, 2), *stale(4, events=6)], *after(first)).ranges == ((date(2026, 3, 4), date(2026, 3, 4)),)


def test_a_day_that_became_right_is_forgotten():
    first = decide(stale(1), Asked(), NOON)
    second = decide([], *after(first))
    assert second.asked.seen == ()
    assert decide(stale(1), *after(second)).ranges == ((date(2026, 3, 1), date(2026, 3, 1)),)


def test_no_more_days_than_allowed_are_asked_for_in_an_hour():
    first = decide(stale(1, 2, 3), Asked(), NOON, most=2)
    assert (first.ranges, first.waiting) == (((date(2026, 3, 1), date(2026, 3, 2)),), 1)
    second = decide(stale(1, 2, 3), *after(first), most=2)
    assert (second.ranges, second.waiting) == ((), 1)
    third = decide(stale(1, 2, 3), *after(second, hours=1.1), most=2)
    assert (third.ranges, third.waiting) == (((date(2026, 3, 3), date(2026, 3, 3)),), 0)
