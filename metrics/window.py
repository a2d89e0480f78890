"""Event-time windows: half-open, in UTC, and owned by the partition in which they start.

A window is ``[start, end)``: an event at ``end`` belongs to the next one. Inside data frames times are integers,
milliseconds since 1970-01-01T00:00:00Z; outside they are aware datetimes.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

DAY_MS = 86_400_000
LARGEST_SLICE = timedelta(hours=1)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": DAY_MS}
_DURATION = re.compile(r"(-?\d+)(ms|s|m|h|d)")


def parse_duration(text: str) -> timedelta:
    """The duration that a text such as ``10s``, ``5m``, ``1h`` or ``1d`` stands for.

    Raises:
        ValueError: The text is not a whole number followed by ms, s, m, h or d.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        msg = (
            f"a duration is a whole number and a unit of ms, s, m, h, d; got `{text}`. write for example 10s, 5m or 1d"
        )
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
    """Windows of one size that follow one another without gap or overlap, aligned to the epoch.

    The size divides a UTC day, so that no window crosses the border of a partition.
    """

    size: timedelta

    def __post_init__(self) -> None:
        if self.size <= timedelta(0) or DAY_MS % self.size_ms:
            msg = (
                f"the size of a tumbling window must divide a day; got {format_duration(self.size)}. "
                "use for example 10s, 1m, 5m, 1h or 1d"
            )
            raise ValueError(msg)

    @property
    def size_ms(self) -> int:
        """The size in milliseconds."""
        return milliseconds(self.size)

    @property
    def grain(self) -> str:
        """The name of the grain in views and queries, for example ``5m``."""
        return format_duration(self.size)

    def __str__(self) -> str:
        return f"tumbling {self.grain}"


def parse_window(text: str) -> TumblingWindow:
    """The window that a catalog's text such as ``tumbling 5m`` declares.

    Raises:
        ValueError: The kind is unknown or the size is not allowed.
    """
    kind, _, size = text.strip().partition(" ")
    if kind != "tumbling":
        msg = f"unknown window `{text}`. the windows are: tumbling SIZE, for example tumbling 5m"
        raise ValueError(msg)
    return TumblingWindow(parse_duration(size))


def slice_width(windows: Iterable[TumblingWindow]) -> timedelta:
    """The width of the largest tumbling slices, at most an hour, of which all these windows are made."""
    return timedelta(milliseconds=math.gcd(milliseconds(LARGEST_SLICE), *(window.size_ms for window in windows)))
