"""The SQL that assigns slices to windows: where a window starts that holds a slice, and where a window ends.

Everything is `DateTime64(3, 'UTC')`; ends are exclusive. A slice lies in one window, but in several sliding ones.
"""

from dataclasses import dataclass

from metrics.window import (
    CALENDAR_UNITS,
    DAY_MS,
    CalendarWindow,
    GlobalWindow,
    SlicedWindow,
    SlidingWindow,
    TumblingWindow,
    milliseconds,
)

EPOCH = "fromUnixTimestamp64Milli(toInt64(0), 'UTC')"
"""The start of a global window."""


@dataclass(frozen=True)
class Starts:
    """How the windows of a slice are found.

    Attributes:
        expression: the start of the window that holds the slice; of sliding windows an array of all starts.
        many: whether it is an array, over which rows are to be joined.
    """

    expression: str
    many: bool = False


def starts(window: SlicedWindow, slice_start: str) -> Starts:
    """Starts of the windows that hold the slice which starts at the SQL expression `slice_start`."""
    millis = f"toUnixTimestamp64Milli({slice_start})"
    match window:
        case TumblingWindow():
            # positiveModulo: before 1970 a plain one would round upwards
            return Starts(_instant(f"{millis} - positiveModulo({millis}, {window.size_ms})"))
        case SlidingWindow():
            size, period = milliseconds(window.size), milliseconds(window.period)
            into = f"positiveModulo({millis}, {period})"
            number = f"toUInt32(intDiv({size} - {into} + {period - 1}, {period}))"
            each = _instant(f"{millis} - {into} - back * {period}")
            return Starts(f"arrayMap(back -> {each}, range({number}))", many=True)
        case CalendarWindow():
            return Starts(_midnight(_first_day(window, f"toDate32({slice_start}, '{window.zone}')"), window.zone))
        case GlobalWindow():
            return Starts(EPOCH)


def end(window: SlicedWindow, window_start: str, last_slice: str) -> str:
    """The end of the window that starts at `window_start`.

    Args:
        window: the window.
        window_start: SQL of its start.
        last_slice: SQL of the start of the last slice there is: a global window ends with its UTC day.
    """
    match window:
        case TumblingWindow() | SlidingWindow():
            return f"{window_start} + toIntervalMillisecond({milliseconds(window.size)})"
        case CalendarWindow():
            first = _first_day(window, f"toDate32({window_start}, '{window.zone}')")
            unit = window.unit.capitalize()
            return _midnight(f"add{unit}s({first}, 1)", window.zone)
        case GlobalWindow():
            millis = f"toUnixTimestamp64Milli({last_slice})"
            return _instant(f"{millis} - positiveModulo({millis}, {DAY_MS}) + {DAY_MS}")


def within_a_day(window: SlicedWindow) -> bool:
    """Whether each of its windows lies in one UTC day."""
    return isinstance(window, TumblingWindow) and DAY_MS % window.size_ms == 0


def _instant(millis: str) -> str:
    return f"fromUnixTimestamp64Milli({millis}, 'UTC')"


def _first_day(window: CalendarWindow, day: str) -> str:
    """The first day of the day, week or month of a local day; Date32, because Date and DateTime begin in 1970."""
    assert window.unit in CALENDAR_UNITS
    return {
        "day": day,
        "week": f"{day} - (toDayOfWeek({day}) - 1)",
        "month": f"{day} - (toDayOfMonth({day}) - 1)",
    }[window.unit]


def _midnight(day: str, zone: str) -> str:
    """The instant at which a local day begins, also where that is at 01:00 because midnight is skipped."""
    return f"toTimeZone(toDateTime64({day}, 3, '{zone}'), 'UTC')"
