"""Every aggregation and window as it is served, over events whose answers are worked out by hand."""

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from serving_tables import CATALOG, Event, Tables, at

from infra.settings import Settings
from metrics.window import from_epoch_ms
from serving import query

DEFINITIONS = """
  n:        {{agg: count, by: [country], window: tumbling 1h}}
  total:    {{agg: sum(amount), by: [country], window: tumbling 1h}}
  floats:   {{agg: sum(took), by: [country], window: tumbling 1h}}
  least:    {{agg: min(amount), by: [country], window: tumbling 1h}}
  most:     {{agg: max(took), by: [country], window: tumbling 1h}}
  average:  {{agg: mean(amount), by: [country], window: tumbling 1h}}
  spread:   {{agg: stddev(took), by: [country], window: tumbling 1h}}
  users:    {{agg: distinct(user), by: [country], window: tumbling 1h}}
  middle:   {{agg: "quantile(amount, 0.5)", by: [country], window: tumbling 1h}}
  pages:    {{agg: "top(page, 2)", by: [country], window: tumbling 1h}}
  page:     {{agg: last(page), by: [country], window: tumbling 1h}}
  flagged:  {{agg: last(flag), by: [country], window: tumbling 1h}}
  stock:    {{agg: "level(counted, change)", by: [country], window: tumbling 1h}}
  ratio:    {{ratio: [total, users], description: spent per user, unit: EUR}}
"""
WINDOWS = """
  seen:
    agg: count
    window: [tumbling 1d, sliding 1h every 30m, day Europe/Berlin, week Europe/Berlin, month Europe/Berlin, global]
  apart: {{agg: distinct(user), window: [tumbling 1d, sliding 1h every 30m, month Europe/Berlin, global]}}
  shop:  {{agg: last(page), window: [month Europe/Berlin, global]}}
  both:  {{ratio: [seen, apart]}}
"""
SESSIONS = """
  visits: {{agg: count, by: [country], window: session 30m}}
  spent:  {{agg: sum(amount), window: session 30m max 1h}}
  looked: {{agg: "top(page, 2)", window: session 30m}}
"""
FIRST, SECOND, THIRD = date(2026, 3, 28), date(2026, 3, 29), date(2026, 3, 30)
NOON = at("2026-03-28T12:00:00")
# of DE; the two last of one millisecond: the later place in the log is the last page
HOUR = [
    Event(NOON, user="u1", amount=Decimal("10.00"), page="a", took=1.0, counted=5, change=2, flag=True),
    Event(NOON + timedelta(minutes=10), user="u2", amount=Decimal("20.00"), page="b", took=3.0, change=3),
    Event(NOON + timedelta(minutes=20), user="u1", amount=None, page="a", took=None, change=-1, flag=False),
    Event(NOON + timedelta(minutes=50), user=None, amount=Decimal("40.00"), page="c", took=5.0),
    Event(NOON + timedelta(minutes=50), user="u1", amount=Decimal("30.00"), page="b", took=7.0),
]
ANSWERS = {
    "n": 5,
    "total": Decimal("100.00"),
    "floats": 16.0,
    "least": Decimal("10.00"),
    "most": 7.0,
    "average": 25.0,
    "spread": (20 / 3) ** 0.5,
    "users": 2,
    "middle": Decimal("20.00"),
    "pages": [{"item": "a", "count": 2}, {"item": "b", "count": 2}],
    "page": "b",
    "flagged": False,
    "stock": Decimal(7),
    "ratio": 50.0,
}
NOTHING = [Event(NOON, country="FR", user=None, amount=None)]
EMPTY = {"n": 1, "total": Decimal("0.00"), "floats": 0.0, "users": 0, "pages": [], "stock": Decimal(0)}


def text_of(definitions: str) -> str:
    return CATALOG.partition("metrics:")[0] + "metrics:" + definitions


def answer(tables: Tables, metric: str, grain: str, **asked: object) -> list[query.Row]:
    return query.rows(tables.client, tables.database, query.build(tables.catalog, metric, grain, **asked))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def hour(clickhouse: Settings, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """One hour of DE, and of FR an event without values; the batch layer has them too, on a day that is certified."""
    made = Tables.create(clickhouse, "hourly", tmp_path_factory.mktemp("hourly"), text_of(DEFINITIONS))
    made.speed([*HOUR, *NOTHING])
    made.batch("run-1", [*HOUR, *NOTHING])
    made.close(FIRST, "run-1")
    return made


@pytest.mark.parametrize("layer", query.LAYERS)
@pytest.mark.parametrize("metric", [name for name in ANSWERS if name not in {"middle", "ratio"}])
def test_every_aggregation_has_its_value_in_every_layer(hour: Tables, metric: str, layer: str) -> None:
    (row,) = answer(hour, metric, "1h", by=["country=DE"], layer=layer)
    if isinstance(ANSWERS[metric], float):
        assert row.value == pytest.approx(ANSWERS[metric], rel=1e-12)
    else:
        assert row.value == ANSWERS[metric]
    numeric = metric not in {"pages", "page", "flagged"}
    assert row.drift == (0 if layer == "served" and numeric else None)


@pytest.mark.parametrize("layer", query.LAYERS)
@pytest.mark.parametrize("metric", list(ANSWERS))
def test_a_window_without_values_has_the_value_of_none(hour: Tables, metric: str, layer: str) -> None:
    (row,) = answer(hour, metric, "1h", by=["country=FR"], layer=layer)
    assert row.value == EMPTY.get(metric)


def test_a_quantile_is_a_value_in_batch_and_between_bounds_in_speed(hour: Tables) -> None:
    (served,) = answer(hour, "middle", "1h", by=["country=DE"])
    (shown,) = answer(hour, "middle", "1h", by=["country=DE"], layer="speed")
    assert (served.value, served.lower, served.layer) == (Decimal("20.00"), None, "batch")
    assert shown.lower <= Decimal(20) <= shown.upper  # type: ignore[operator]
    assert served.drift == pytest.approx(float(served.value - shown.value), abs=1e-9)  # type: ignore[operator]


def test_a_ratio_is_of_one_layer_and_has_the_bounds_of_its_parts(hour: Tables) -> None:
    (served,) = answer(hour, "ratio", "1h", by=["country=DE"])
    (shown,) = answer(hour, "ratio", "1h", by=["country=DE"], layer="speed")
    (users,) = answer(hour, "users", "1h", by=["country=DE"], layer="speed")
    assert (served.value, served.lower, served.upper, served.layer, served.drift) == (50.0, None, None, "batch", 0.0)
    assert (served.final_ratio, served.is_final) == (1.0, True)
    assert (shown.lower, shown.upper) == (100 / users.upper, 100 / users.lower)  # type: ignore[operator]


def test_a_ratio_counts_nothing_as_zero_and_has_no_value_without_denominator(
    clickhouse: Settings, unique: str, tmp_path: Path
) -> None:
    definitions = """
  bought: {{agg: count, where: kind = 'buy', window: tumbling 1h}}
  viewed: {{agg: count, where: kind = 'view', window: tumbling 1h}}
  price:  {{agg: mean(amount), where: kind = 'buy', window: tumbling 1h}}
  share:  {{ratio: [bought, viewed]}}
  per_view: {{ratio: [price, viewed]}}
"""
    tables = Tables.create(clickhouse, unique, tmp_path, text_of(definitions))
    hours = [NOON + timedelta(hours=n) for n in range(3)]
    buy, view = ([Event(hour, kind, amount=Decimal(4)) for hour in hours] for kind in ("buy", "view"))
    tables.speed([buy[0], view[0], view[0], view[1], buy[2]])
    assert [row.value for row in answer(tables, "share", "1h")] == [0.5, 0.0, None]
    assert [row.value for row in answer(tables, "per_view", "1h")] == [2.0, None, None]
    assert [row.value for row in answer(tables, "share", "1h", layer="speed")] == [0.5, 0.0, None]
    # both operands come from speed while the day covers only one of them
    tables.batch("run-1", [buy[0], buy[0], view[0], view[0]])
    tables.publish(FIRST, "run-1", ["bought"])
    tables.certify(FIRST, "run-1")
    assert [row.value for row in answer(tables, "bought", "1h")] == [2]
    assert [row.value for row in answer(tables, "share", "1h")] == [0.5, 0.0, None]
    tables.publish(FIRST, "run-1")
    assert [(row.value, row.layer, row.drift) for row in answer(tables, "share", "1h")] == [(1.0, "batch", 0.5)]


@pytest.fixture
def windows(clickhouse: Settings, unique: str, tmp_path: Path) -> Tables:
    """Two events on the last day before the clock changes, three on the day of 23 hours, one after it."""
    made = Tables.create(clickhouse, unique, tmp_path, text_of(WINDOWS))
    made.speed(EVENTS)
    return made


EVENTS = [
    Event(NOON, user="u1", page="a"),
    Event(at("2026-03-28T23:10:00"), user="u2", page="b"),  # 00:10 of the 29th in Berlin
    Event(at("2026-03-29T00:20:00"), user="u1", page="c"),
    Event(at("2026-03-29T21:50:00"), user="u3", page="d"),  # 23:50 of the 29th
    Event(at("2026-03-29T22:10:00"), user="u3", page="e"),  # 00:10 of the 30th
    Event(at("2026-03-31T22:30:00"), user="u4", page="f"),  # 00:30 of the first of April
]


def spans(tables: Tables, metric: str, grain: str, **asked: object) -> list[tuple[str, str, object]]:
    return [
        (f"{row.window_start:%m-%d %H:%M}", f"{row.window_end:%m-%d %H:%M}", row.value)
        for row in answer(tables, metric, grain, **asked)
    ]


def test_calendar_windows_follow_the_clock_of_their_zone(windows: Tables) -> None:
    assert spans(windows, "seen", "day_europe_berlin") == [
        ("03-27 23:00", "03-28 23:00", 1),
        ("03-28 23:00", "03-29 22:00", 3),
        ("03-29 22:00", "03-30 22:00", 1),
        ("03-31 22:00", "04-01 22:00", 1),
    ]
    assert spans(windows, "seen", "week_europe_berlin") == [
        ("03-22 23:00", "03-29 22:00", 4),
        ("03-29 22:00", "04-05 22:00", 2),
    ]
    assert spans(windows, "seen", "month_europe_berlin") == [
        ("02-28 23:00", "03-31 22:00", 5),
        ("03-31 22:00", "04-30 22:00", 1),
    ]


def test_sliding_windows_overlap_also_across_midnight(windows: Tables) -> None:
    shown = spans(windows, "seen", "1h_every_30m", start="2026-03-28T22:00Z", end="2026-03-29T12:00Z")
    assert shown == [
        ("03-28 22:30", "03-28 23:30", 1),
        ("03-28 23:00", "03-29 00:00", 1),
        ("03-28 23:30", "03-29 00:30", 1),
        ("03-29 00:00", "03-29 01:00", 1),
    ]


def test_the_global_window_is_one_row_that_ends_with_the_last_day(windows: Tables) -> None:
    (row,) = answer(windows, "seen", "global")
    assert (row.window_start, row.window_end, row.value) == (from_epoch_ms(0), at("2026-04-01T00:00:00"), 6)
    (row,) = answer(windows, "apart", "global")
    assert (row.window_start, row.window_end, row.value) == (from_epoch_ms(0), at("2026-04-01T00:00:00"), 4)
    (row,) = answer(windows, "both", "global")
    assert row.value == 1.5


def test_a_month_holds_exact_days_and_live_ones(windows: Tables) -> None:
    late = Event(at("2026-03-28T13:00:00"), user="u9", page="z")
    windows.batch("run-1", [*EVENTS[:2], late])
    windows.close(FIRST, "run-1")
    days = 30 + 23 / 24
    (march, _) = answer(windows, "seen", "month_europe_berlin")
    assert (march.value, march.layer, march.status, march.drift) == (6, "speed", "provisional", None)
    assert march.final_ratio == pytest.approx(1 / days)
    # a sketch does not merge with exact values: speed alone
    (march, _) = answer(windows, "apart", "month_europe_berlin")
    assert (march.value, march.layer, march.final_ratio) == (3, "speed", 0.0)
    (march, _) = answer(windows, "both", "month_europe_berlin")
    assert march.value == pytest.approx(5 / 3)
    # the day in Berlin that is cut by midnight has 23:00 to 24:00 from batch
    rows = {row.window_start: row for row in answer(windows, "seen", "day_europe_berlin")}
    assert rows[at("2026-03-28T23:00:00")].final_ratio == pytest.approx(1 / 23)
    (whole,) = answer(windows, "seen", "1d", end="2026-03-29")
    assert (whole.value, whole.layer, whole.drift, whole.final_ratio) == (3, "batch", 1.0, 1.0)


def test_a_window_is_certified_once_all_its_days_are(windows: Tables) -> None:
    late = Event(at("2026-03-28T23:30:00"), user="u9")
    windows.batch("run-1", [*EVENTS[:2], late])
    windows.batch("run-2", EVENTS[2:5])
    windows.close(FIRST, "run-1")
    window = {"start": "2026-03-28T23:00Z", "end": "2026-03-29T22:00Z"}
    (row,) = answer(windows, "seen", "day_europe_berlin", **window)
    assert (row.value, row.layer) == (4, "speed")
    (row,) = answer(windows, "seen", "day_europe_berlin", **window, layer="batch")
    assert (row.value, row.is_final) == (2, False)
    windows.publish(SECOND, "run-2")
    (row,) = answer(windows, "seen", "day_europe_berlin", **window)
    assert row.layer == "speed"
    windows.certify(SECOND, "run-2")
    (row,) = answer(windows, "seen", "day_europe_berlin", **window)
    assert (row.value, row.layer, row.is_final, row.drift, row.final_ratio) == (4, "batch", True, 1.0, 1.0)
    (row,) = answer(windows, "seen", "day_europe_berlin", **window, layer="batch")
    assert (row.value, row.is_final) == (4, True)


def test_the_global_window_is_certified_once_every_day_is(windows: Tables) -> None:
    for number, day in enumerate([FIRST, SECOND, THIRD, THIRD + timedelta(days=1)]):
        (row,) = answer(windows, "apart", "global")
        assert (row.layer, row.value) == ("speed", 4)
        (row,) = answer(windows, "seen", "global")
        assert (row.layer, row.final_ratio) == ("speed", number / 4)
        run = f"run-{number}"
        windows.batch(run, [event for event in EVENTS if event.time.date() == day])
        windows.close(day, run)
    for metric, value in (("seen", 6), ("apart", 4), ("shop", "f"), ("both", 1.5)):
        (row,) = answer(windows, metric, "global")
        assert (row.value, row.layer, row.is_final, row.status) == (value, "batch", True, "certified")


def test_only_the_exact_reading_is_served(windows: Tables) -> None:
    windows.batch("run-1", EVENTS[:2])
    windows.batch("run-1", EVENTS[:1], reading="counted")
    windows.batch("run-1", EVENTS[:2], reading="with_late")
    windows.close(FIRST, "run-1")
    (row,) = answer(windows, "seen", "1d", end="2026-03-29")
    assert row.value == 2
    (row,) = answer(windows, "apart", "1d", end="2026-03-29")
    assert row.value == 2


@pytest.fixture
def sessions(clickhouse: Settings, unique: str, tmp_path: Path) -> Tables:
    return Tables.create(clickhouse, unique, tmp_path, text_of(SESSIONS))


def minute(number: int, user: str = "u1", page: str = "a") -> Event:
    return Event(NOON + timedelta(minutes=number), user=user, page=page, amount=Decimal(1))


def test_a_session_has_its_key_its_length_and_a_gap_at_its_end(sessions: Tables) -> None:
    sessions.speed([minute(0), minute(20), minute(60), minute(0, "u2")])
    assert [row.as_json() for row in answer(sessions, "visits", "session", by=["session_key=u1"])] == [
        {
            "window_start": "2026-03-28T12:00:00Z",
            "window_end": "2026-03-28T12:50:00Z",
            "dimensions": {"session_key": "u1", "country": "DE"},
            "value": 2,
            "lower": None,
            "upper": None,
            "layer": "speed",
            "is_final": False,
            "drift": None,
            "status": "provisional",
            "final_ratio": 0.0,
            "length_ms": 1_200_000,
        },
        {
            "window_start": "2026-03-28T13:00:00Z",
            "window_end": "2026-03-28T13:30:00Z",
            "dimensions": {"session_key": "u1", "country": "DE"},
            "value": 1,
            "lower": None,
            "upper": None,
            "layer": "speed",
            "is_final": False,
            "drift": None,
            "status": "provisional",
            "final_ratio": 0.0,
            "length_ms": 0,
        },
    ]


def test_a_session_that_became_part_of_another_is_gone(sessions: Tables) -> None:
    sessions.speed([minute(0), minute(40)])
    assert len(answer(sessions, "visits", "session")) == 2
    # an event between the two joins them
    sessions.speed([minute(0), minute(20), minute(40)])
    sessions.tombstone("visits", NOON + timedelta(minutes=40), "u1", 3, "DE")
    (row,) = answer(sessions, "visits", "session")
    assert (row.value, row.length_ms) == (3, 2_400_000)
    # what is replayed of the former cut changes nothing
    sessions.speed([minute(0), minute(40)])
    (row,) = answer(sessions, "visits", "session")
    assert row.value == 3


def test_a_session_that_would_reach_its_maximum_ends_where_the_next_begins(sessions: Tables) -> None:
    sessions.speed([minute(number) for number in (0, 20, 40, 60)])
    assert [(row.window_start, row.window_end, row.value) for row in answer(sessions, "spent", "session")] == [
        (NOON, NOON + timedelta(minutes=60), Decimal("3.00")),
        (NOON + timedelta(minutes=60), NOON + timedelta(minutes=90), Decimal("1.00")),
    ]


def test_a_session_belongs_to_the_day_of_its_end(sessions: Tables) -> None:
    night = [
        Event(at("2026-03-28T23:00:00"), user="u1", page="a"),
        Event(at("2026-03-28T23:50:00"), user="u2", page="a"),
        Event(at("2026-03-29T00:10:00"), user="u2", page="b"),
        Event(at("2026-03-29T00:10:00"), user="u2", page="b"),
    ]
    sessions.speed(night)
    sessions.batch("run-1", night)
    sessions.close(FIRST, "run-1")
    for metric, value in (("visits", 1), ("looked", [{"item": "a", "count": 1}])):
        first, second = answer(sessions, metric, "session")
        assert (first.value, first.layer, first.status) == (value, "batch", "certified")
        assert (second.layer, second.length_ms) == ("speed", 1_200_000)
    sessions.close(SECOND, "run-1")
    _, second = answer(sessions, "looked", "session")
    assert (second.value, second.layer) == ([{"item": "b", "count": 2}, {"item": "a", "count": 1}], "batch")


def test_a_session_that_speed_cut_otherwise_is_shown_as_batch_has_it(sessions: Tables) -> None:
    sessions.speed([minute(0), minute(40)])
    sessions.batch("run-1", [minute(0), minute(20), minute(40)])
    sessions.close(FIRST, "run-1")
    (row,) = answer(sessions, "visits", "session")
    assert (row.value, row.layer, row.drift, row.length_ms) == (3, "batch", 2.0, 2_400_000)
