"""Event-time windows: half-open, in UTC, and owned by the partition in which they start.

A window is ``[start, end)``: an event at ``end`` belongs to the next one. Inside data frames times are integers,
milliseconds since 1970-01-01T00:00:00Z; outside they are aware datetimes.
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import available_timezones

DAY_MS = 86_400_000
LARGEST_SLICE = timedelta(hours=1)
LARGEST_CALENDAR_SLICE = timedelta(minutes=15)
LONGEST_SESSION = timedelta(days=7)
LONGEST_DURATION = timedelta(days=3650)
"""Ten years; what is longer is a slip, and sums of times and durations stay within what a datetime holds."""

MOST_SLIDES = 1440
CALENDAR_UNITS = {"day": 1, "week": 7, "month": 30}
"""The units of a calendar window, with their usual length in days."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": DAY_MS}
_DURATION = re.compile(r"(-?\d+)(ms|s|m|h|d)")
_MOST_DIGITS = 20
_SIGN = re.compile(r"[+-](?=\d)")


def parse_duration(text: str) -> timedelta:
    """The duration that a text such as ``10s``, ``5m``, ``1h`` or ``1d`` stands for.

    Raises:
        ValueError: The text is not a whole number followed by ms, s, m, h or d, or it is longer than ten years.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        msg = (
            f"a duration is a whole number and a unit of ms, s, m, h, d; got `{text}`. write for example 10s, 5m or 1d"
        )
        raise ValueError(msg)
    if len(match[1]) > _MOST_DIGITS or abs(int(match[1]) * _UNITS[match[2]]) > milliseconds(LONGEST_DURATION):
        msg = f"a duration is at most {format_duration(LONGEST_DURATION)}, ten years; got {text}. write a shorter one"
        raise ValueError(msg)
    return timedelta(milliseconds=int(match[1]) * _UNITS[match[2]])


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads back as this duration."""
    total = milliseconds(duration)
    for unit, size in reversed(_UNITS.items()):
        if total and total % size == 0:
            return f"{total // size}{unit}"
    return "0s"


def milliseconds(duration: timedelta) -> int:
    """The duration in whole milliseconds."""
    return duration // timedelta(milliseconds=1)


def to_epoch_ms(moment: datetime) -> int:
    """Milliseconds since the epoch of an aware datetime."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def from_epoch_ms(moment: int) -> datetime:
    """The aware UTC datetime of milliseconds since the epoch."""
    return _EPOCH + timedelta(milliseconds=moment)


def partition_of(event_time: int) -> date:
    """The UTC day that owns a window starting at ``event_time`` (milliseconds since the epoch)."""
    return from_epoch_ms(event_time).date()


@dataclass(frozen=True, order=True)
class Window:
    """A span of event time, ``[start, end)``: `end` is exclusive. Both are aware and in UTC."""

    start: datetime
    end: datetime

    @staticmethod
    def of_day(day: date) -> "Window":
        """The UTC day as a window."""
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        return Window(start, start + timedelta(days=1))


@dataclass(frozen=True)
class TumblingWindow:
    """Windows of one size that follow one another without gap or overlap, aligned to the epoch."""

    size: timedelta

    def __post_init__(self) -> None:
        _check_whole_seconds("the size of a tumbling window", self.size)

    @property
    def size_ms(self) -> int:
        """The size in milliseconds."""
        return milliseconds(self.size)

    @property
    def grain(self) -> str:
        """The name of the grain in views and queries, for example ``5m``."""
        return format_duration(self.size)

    @property
    def slice_limits(self) -> tuple[timedelta, ...]:
        """Durations that the width of a slice must divide."""
        return (self.size,)

    def __str__(self) -> str:
        return f"tumbling {self.grain}"


@dataclass(frozen=True)
class SlidingWindow:
    """Windows of one size, one of which starts at each multiple of the period; they overlap."""

    size: timedelta
    period: timedelta

    def __post_init__(self) -> None:
        _check_whole_seconds("the size of a sliding window", self.size)
        _check_whole_seconds("the period of a sliding window", self.period)
        if self.period > self.size:
            msg = (
                f"the period of a sliding window must not exceed its size; got {format_duration(self.size)} every "
                f"{format_duration(self.period)}. write for example sliding 5m every 1m"
            )
            raise ValueError(msg)
        if self.size // self.period > MOST_SLIDES:
            msg = (
                f"an event is in at most {MOST_SLIDES} sliding windows; got {format_duration(self.size)} every "
                f"{format_duration(self.period)}. lengthen the period"
            )
            raise ValueError(msg)

    @property
    def grain(self) -> str:
        """The name of the grain in views and queries, for example ``5m_every_1m``."""
        return f"{format_duration(self.size)}_every_{format_duration(self.period)}"

    @property
    def slice_limits(self) -> tuple[timedelta, ...]:
        """Durations that the width of a slice must divide."""
        return (self.size, self.period)

    def __str__(self) -> str:
        return f"sliding {format_duration(self.size)} every {format_duration(self.period)}"


@dataclass(frozen=True)
class CalendarWindow:
    """Days, weeks (from Monday) or months as a time zone has them: a day has 23, 24 or 25 hours, or 23.5 and 24.5."""

    unit: str
    zone: str

    def __post_init__(self) -> None:
        if self.unit not in CALENDAR_UNITS:
            msg = f"a calendar window is a day, week or month; got `{self.unit}`. write for example day Europe/Berlin"
            raise ValueError(msg)
        if self.zone not in available_timezones():
            near = difflib.get_close_matches(self.zone, available_timezones(), n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            msg = (
                f"unknown time zone `{self.zone}`. {meant}write a name of the IANA database, for example Europe/Berlin"
            )
            raise ValueError(msg)

    @property
    def size(self) -> timedelta:
        """The usual length."""
        return timedelta(days=CALENDAR_UNITS[self.unit])

    @property
    def grain(self) -> str:
        """The name of the grain in views and queries, for example ``day_europe_berlin``."""
        zone = _SIGN.sub(lambda sign: {"+": "_plus_", "-": "_minus_"}[sign[0]], self.zone)
        return re.sub(r"[^a-z0-9]+", "_", f"{self.unit}_{zone}".lower()).strip("_")

    @property
    def slice_limits(self) -> tuple[timedelta, ...]:
        """Durations that the width of a slice must divide: every zone's offset is a multiple of 15 minutes today."""
        return (LARGEST_CALENDAR_SLICE,)

    def __str__(self) -> str:
        return f"{self.unit} {self.zone}"


@dataclass(frozen=True)
class GlobalWindow:
    """The one window that holds everything since the start of the log."""

    size: timedelta = timedelta(days=365)
    grain: str = "global"
    slice_limits: tuple[timedelta, ...] = ()

    def __str__(self) -> str:
        return "global"


@dataclass(frozen=True)
class SessionWindow:
    """Bursts of events of one key, less than `gap` apart; one that would reach `max_length` ends and another begins.

    A session is ``[first event, last event + gap)``.
    """

    gap: timedelta
    max_length: timedelta = timedelta(days=1)
    grain: str = "session"

    def __post_init__(self) -> None:
        _check_whole_seconds("the gap of a session", self.gap)
        if not self.gap <= self.max_length <= LONGEST_SESSION:
            msg = (
                f"the maximum length of a session must lie between its gap and {format_duration(LONGEST_SESSION)}; got "
                f"{format_duration(self.max_length)}. write for example session 30m max 12h"
            )
            raise ValueError(msg)

    @property
    def size(self) -> timedelta:
        """The usual length, for drawing."""
        return self.gap

    @property
    def gap_ms(self) -> int:
        """The gap in milliseconds."""
        return milliseconds(self.gap)

    @property
    def max_length_ms(self) -> int:
        """The maximum length in milliseconds."""
        return milliseconds(self.max_length)

    def __str__(self) -> str:
        return f"session {format_duration(self.gap)} max {format_duration(self.max_length)}"


SlicedWindow = TumblingWindow | SlidingWindow | CalendarWindow | GlobalWindow
"""Windows that are made of slices."""

AnyWindow = SlicedWindow | SessionWindow

_WINDOWS = (
    "tumbling SIZE, sliding SIZE every PERIOD, session GAP [max LENGTH], day ZONE, week ZONE, month ZONE, global; "
    "for example tumbling 5m"
)


def parse_window(text: str) -> AnyWindow:
    """The window that a catalog's text such as ``tumbling 5m`` declares.

    Raises:
        ValueError: The kind is unknown or its parts are not allowed.
    """
    match text.split():
        case ["tumbling", size]:
            return TumblingWindow(parse_duration(size))
        case ["sliding", size, "every", period]:
            return SlidingWindow(parse_duration(size), parse_duration(period))
        case ["session", gap]:
            return SessionWindow(parse_duration(gap), max(parse_duration(gap), timedelta(days=1)))
        case ["session", gap, "max", length]:
            return SessionWindow(parse_duration(gap), parse_duration(length))
        case ["day" | "week" | "month" as unit, zone]:
            return CalendarWindow(unit, zone)
        case ["global"]:
            return GlobalWindow()
    msg = f"unknown window `{text}`. the windows are: {_WINDOWS}"
    raise ValueError(msg)


def slice_width(windows: Iterable[SlicedWindow]) -> timedelta:
    """The width of the largest tumbling slices, at most an hour, of which all these windows are made."""
    limits = [limit for window in windows for limit in window.slice_limits]
    return timedelta(milliseconds=math.gcd(milliseconds(LARGEST_SLICE), *map(milliseconds, limits)))


def _check_whole_seconds(what: str, duration: timedelta) -> None:
    if duration <= timedelta(0) or duration % timedelta(seconds=1):
        got = format_duration(duration)
        msg = f"{what} must be a whole number of seconds above 0; got {got}. use for example 10s or 5m"
        raise ValueError(msg)
