from datetime import UTC, date, datetime, timedelta

import pytest

from metrics.window import (
    TumblingWindow,
    Window,
    format_duration,
    from_epoch_ms,
    parse_duration,
    partition_of,
    slice_width,
    to_epoch_ms,
)


@pytest.mark.parametrize("text", ["250ms", "10s", "5m", "1h", "1d", "90s"])
def test_a_duration_is_written_as_it_is_read(text: str) -> None:
    assert format_duration(parse_duration(text)) == text


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


def test_a_window_must_divide_a_day() -> None:
    with pytest.raises(ValueError, match="must divide a day; got 7h"):
        TumblingWindow(timedelta(hours=7))
