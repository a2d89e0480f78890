import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import available_timezones

import pytest

from metrics.window import (
    CalendarWindow,
    SessionWindow,
    TumblingWindow,
    Window,
    format_duration,
    from_epoch_ms,
    parse_duration,
    parse_window,
    partition_of,
    slice_width,
    to_epoch_ms,
)


@pytest.mark.parametrize("text", ["250ms", "10s", "5m", "1h", "1d", "90s"])
def test_a_duration_is_written_as_it_is_read(text: str) -> None:
    assert format_duration(parse_duration(text)) == text


def test_a_duration_of_ten_years_is_the_longest() -> None:
    assert parse_duration("3650d") == timedelta(days=3650)
    for text in ("3651d", "315360000001ms", "-3651d", "1" * 5000 + "d"):
        with pytest.raises(ValueError, match="a duration is at most 3650d, ten years; got"):
            parse_duration(text)


def test_times_survive_the_way_to_milliseconds_and_back() -> None:
    moment = datetime(2024, 2, 29, 23, 59, 59, 999_000, tzinfo=UTC)
    assert from_epoch_ms(to_epoch_ms(moment)) == moment


def test_a_day_ends_where_the_next_begins() -> None:
    assert Window.of_day(date(2024, 2, 29)).end == Window.of_day(date(2024, 3, 1)).start


def test_midnight_belongs_to_the_day_that_starts() -> None:
    midnight = to_epoch_ms(datetime(2024, 3, 1, tzinfo=UTC))
    assert partition_of(midnight) == date(2024, 3, 1)
    assert partition_of(midnight - 1) == date(2024, 2, 29)


@pytest.mark.parametrize(
    ("sizes", "width"), [(["1m", "5m"], "1m"), (["1d"], "1h"), (["2h", "30m"], "30m"), (["10s", "15s"], "5s")]
)
def test_slices_divide_every_window_and_are_at_most_an_hour(sizes: list[str], width: str) -> None:
    windows = [TumblingWindow(parse_duration(size)) for size in sizes]
    assert slice_width(windows) == parse_duration(width)


@pytest.mark.parametrize(
    ("text", "grain", "width"),
    [
        ("tumbling 7h", "7h", "1h"),
        ("sliding 5m every 90s", "5m_every_90s", "30s"),
        ("day Europe/Berlin", "day_europe_berlin", "15m"),
        ("week America/New_York", "week_america_new_york", "15m"),
        ("month Etc/GMT+3", "month_etc_gmt_plus_3", "15m"),
        ("day America/Port-au-Prince", "day_america_port_au_prince", "15m"),
        ("global", "global", "1h"),
    ],
)
def test_a_window_has_a_grain_and_a_width_of_slices(text: str, grain: str, width: str) -> None:
    window = parse_window(text)
    assert window.grain == grain
    assert not isinstance(window, SessionWindow)
    assert slice_width([window]) == parse_duration(width)
    assert parse_window(str(window)) == window


def test_each_time_zone_has_a_grain_of_its_own() -> None:
    zones = available_timezones()
    assert len({CalendarWindow("day", zone).grain for zone in zones}) == len(zones)


def test_a_session_has_a_gap_and_a_maximum_length() -> None:
    assert parse_window("session 30m") == SessionWindow(timedelta(minutes=30), timedelta(days=1))
    assert parse_window("session 2d") == SessionWindow(timedelta(days=2), timedelta(days=2))
    assert parse_window("session 30m max 12h").grain == "session"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("tumbling 500ms", "must be a whole number of seconds above 0; got 500ms"),
        ("sliding 1m every 2m", "must not exceed its size; got 1m every 2m"),
        ("sliding 1d every 10s", "at most 1440 sliding windows; got 1d every 10s"),
        ("session 30m max 10m", "must lie between its gap and 7d; got 10m"),
        ("day Berlin", "unknown time zone `Berlin`"),
        ("sliding 5m", "unknown window `sliding 5m`"),
    ],
)
def test_a_window_that_cannot_be_is_refused(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=re.escape(rule)):
        parse_window(text)
