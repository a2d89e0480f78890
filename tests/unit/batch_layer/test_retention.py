"""Which runs' rows are dropped."""

from datetime import UTC, date, datetime, timedelta

from batch_layer.retention import HeldRun, outdated

NOW = datetime(2026, 3, 9, tzinfo=UTC)
KEEP = timedelta(days=7)


def run(name: str, *, heard: float, until: float | None = None, published: bool = True) -> HeldRun:
    """A run that was heard of, and replaced, so many days ago."""
    shown_until = None if until is None else NOW - timedelta(days=until)
    return HeldRun(date(2026, 3, 1), name, NOW - timedelta(days=heard), shown_until, published)


def test_what_is_shown_is_kept_however_old():
    assert outdated([run("shown", heard=900)], KEEP, NOW) == []


def test_what_was_replaced_is_kept_for_a_time():
    recent, old = run("recent", heard=90, until=6.9), run("old", heard=90, until=7.1)
    assert outdated([recent, old], KEEP, NOW) == [old]


def test_what_was_never_published_is_kept_while_it_may_be_under_way():
    running, killed = run("running", heard=0.9, published=False), run("killed", heard=1.1, published=False)
    assert outdated([running, killed], KEEP, NOW) == [killed]
