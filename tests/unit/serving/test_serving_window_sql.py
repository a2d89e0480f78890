"""ClickHouse's windows against Python's own arithmetic and time zones."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import chdb
import pytest

from metrics.window import (
    CalendarWindow,
    GlobalWindow,
    SlicedWindow,
    SlidingWindow,
    TumblingWindow,
    from_epoch_ms,
    parse_window,
    to_epoch_ms,
)
from serving import window_sql

QUARTER = timedelta(minutes=15)
ZONES = {
    # each with the days around a change of its clock
    "Europe/Berlin": ("2026-03-26", "2026-10-23"),
    "America/New_York": ("2026-03-06", "2026-10-30"),
    "Australia/Lord_Howe": ("2026-04-02", "2026-10-02"),
    "Africa/Cairo": ("2026-04-22", "2026-10-28"),
    "America/Sao_Paulo": ("2018-11-02", "1969-12-29"),
    "Pacific/Apia": ("2011-12-27",),
    "Asia/Kathmandu": ("2026-01-30",),
}


def assigned(window: SlicedWindow, first: datetime, until: datetime, width: timedelta) -> list[tuple[datetime, ...]]:
    """(slice, window start, window end) for all slices from `first` to `until`."""
    width_ms = width // timedelta(milliseconds=1)
    slices = (
        f"SELECT fromUnixTimestamp64Milli({to_epoch_ms(first)} + toInt64(number) * {width_ms}, 'UTC') AS slice_start"
        f" FROM numbers({(until - first) // width})"
    )
    found = window_sql.starts(window, "s.slice_start")
    start, join = ("w", f" ARRAY JOIN {found.expression} AS w") if found.many else (found.expression, "")
    end = window_sql.end(window, "window_start", "max(slice_start) OVER ()")
    times = ", ".join(f"toUnixTimestamp64Milli({name})" for name in ("slice_start", "window_start", f"({end})"))
    sql = (
        f"SELECT {times} FROM (SELECT s.slice_start AS slice_start, {start} AS window_start FROM ({slices}) AS s{join})"
    )
    lines = chdb.query(f"{sql} ORDER BY ALL", "TSV").data().splitlines()
    return [tuple(from_epoch_ms(int(text)) for text in line.split()) for line in lines]


def local_unit(unit: str, day: date) -> date:
    """The first day of the unit that a local day lies in."""
    return {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}[unit]


@pytest.mark.parametrize(("zone", "first"), [(zone, first) for zone, days in ZONES.items() for first in days])
@pytest.mark.parametrize("unit", ["day", "week", "month"])
def test_calendar_windows_are_those_of_the_time_zone_database(unit: str, zone: str, first: str) -> None:
    begin = datetime.fromisoformat(first).replace(tzinfo=UTC)
    info = ZoneInfo(zone)
    found = assigned(CalendarWindow(unit, zone), begin, begin + timedelta(days=40), QUARTER)
    for moment, start, end in found:
        here = local_unit(unit, moment.astimezone(info).date())
        assert start <= moment < end
        # the window is all of the local unit and nothing else: both edges are where it begins
        assert local_unit(unit, start.astimezone(info).date()) == here
        assert local_unit(unit, (start - QUARTER).astimezone(info).date()) < here
        assert local_unit(unit, (end - QUARTER).astimezone(info).date()) == here
        assert local_unit(unit, end.astimezone(info).date()) > here
    windows = sorted({(start, end) for _, start, end in found})
    assert all(one[1] == other[0] for one, other in pairwise(windows))


@pytest.mark.parametrize(
    ("zone", "moment", "start", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", 25),
        ("America/New_York", "2026-03-08T12:00", "2026-03-08T05:00", 23),
        ("America/New_York", "2026-11-01T12:00", "2026-11-01T04:00", 25),
        ("Australia/Lord_Howe", "2026-04-04T20:00", "2026-04-04T13:00", 24.5),
        ("Australia/Lord_Howe", "2026-10-03T20:00", "2026-10-03T13:30", 23.5),
        ("Africa/Cairo", "2026-04-24T12:00", "2026-04-23T22:00", 23),
    ],
)
def test_a_day_is_as_long_as_its_clock_says(zone: str, moment: str, start: str, hours: float) -> None:
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    ((_, begins, ends),) = assigned(CalendarWindow("day", zone), at, at + QUARTER, QUARTER)
    assert begins == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert ends - begins == timedelta(hours=hours)


@pytest.mark.parametrize("begin", ["2026-03-01T00:00", "1969-12-31T22:00"])
@pytest.mark.parametrize("text", ["tumbling 7m", "tumbling 1h", "sliding 5m every 1m", "sliding 10m every 4m"])
def test_a_slice_is_in_every_window_that_holds_it_and_in_no_other(text: str, begin: str) -> None:
    window = parse_window(text)
    assert isinstance(window, TumblingWindow | SlidingWindow)
    period = window.period if isinstance(window, SlidingWindow) else window.size
    first = datetime.fromisoformat(begin).replace(tzinfo=UTC)
    width = timedelta(minutes=1)
    epoch = from_epoch_ms(0)
    wanted = []
    for number in range(240):
        moment = first + number * width
        latest = epoch + (moment - epoch) // period * period
        holding = [latest - back * period for back in range(window.size // period + 1)]
        wanted += [(moment, start, start + window.size) for start in holding if moment < start + window.size]
    assert assigned(window, first, first + 240 * width, width) == sorted(wanted)


def test_the_global_window_ends_with_the_day_of_the_last_slice() -> None:
    first = datetime(2026, 3, 1, 23, tzinfo=UTC)
    found = assigned(GlobalWindow(), first, first + timedelta(hours=3), timedelta(hours=1))
    assert {row[1:] for row in found} == {(from_epoch_ms(0), datetime(2026, 3, 3, tzinfo=UTC))}


@pytest.mark.parametrize(
    ("text", "within"), [("tumbling 1h", True), ("tumbling 1d", True), ("tumbling 7h", False), ("day UTC", False)]
)
def test_only_what_divides_a_day_lies_within_one(text: str, within: bool) -> None:
    window = parse_window(text)
    assert window_sql.within_a_day(window) is within  # type: ignore[arg-type]
