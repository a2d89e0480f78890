"""What a comparison found, as frozen values: slices state by state, windows reading by reading.

Slices, or sessions, decide: `speed_<m> FINAL` against `expected_<m>` of the published run, events and whole states,
maps too. Windows explain: the five readings that `causes` splits.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

import polars as pl

from metrics.catalog import Metric
from metrics.window import (
    DAY_MS,
    AnyWindow,
    SessionWindow,
    SlidingWindow,
    TumblingWindow,
    Window,
    milliseconds,
    to_epoch_ms,
)
from reconciliation.causes import CAUSES, Readings, Split, split, total
from reconciliation.certificate import Comparison

SMALLEST_BIN_MS = 900_000
"""Windows are added up over bins of at least a quarter of an hour."""


class Query(Protocol):
    """Runs a SELECT with bound parameters."""

    def __call__(self, sql: str, parameters: Mapping[str, Any]) -> pl.DataFrame:
        """The rows as a frame; times are `Datetime(ms, UTC)`."""


@dataclass(frozen=True)
class Scope:
    """One day of one published run, as the comparison sees it.

    Attributes:
        open_from: slices and windows that end after it are still open; None when all are.
        joined: names of the metrics that are computed from fields of lookups.
    """

    database: str
    partition: date
    run_id: str
    open_from: datetime | None
    joined: frozenset[str] = frozenset()

    def parameters(self, metrics: Iterable[Metric]) -> dict[str, Any]:
        """What statements over these metrics bind."""
        day = Window.of_day(self.partition)
        return {
            "run_id": self.run_id,
            "day": self.partition.isoformat(),
            "start": to_epoch_ms(day.start),
            "end": to_epoch_ms(day.end),
            "open_from": to_epoch_ms(self.open_from or datetime.fromtimestamp(0, UTC)),
        } | {f"version_{metric.name}": metric.metric_version for metric in metrics}


@dataclass(frozen=True)
class SliceRow:
    """One slice or session whose published row differs from the expected one; a side without a row has no state.

    Attributes:
        slice_end: exclusive; of a session the later of both sides.
        speed: state column to its text, shortened; of a session its length too.
        expected: the same of the expected row.
        session_key: whose session it is; None of a slice.
    """

    slice_start: datetime
    slice_end: datetime
    dimensions: Mapping[str, str]
    closed: bool
    speed_events: int | None
    expected_events: int | None
    speed: Mapping[str, str]
    expected: Mapping[str, str]
    session_key: str | None = None


@dataclass(frozen=True)
class SliceDiff:
    """All slices of one metric and day. `only_speed` and `only_expected` are among the differing ones."""

    comparison: Comparison
    only_speed: int
    only_expected: int
    samples: tuple[SliceRow, ...]


NO_SLICES = SliceDiff(Comparison(0, 0, 0, 0), 0, 0, ())
"""What a ratio has: it is computed from two metrics, which have slices."""


@dataclass(frozen=True)
class Bin:
    """Sums over the windows that start in one bin and are all closed or all open.

    A window that starts before the day is in the day's first bin; a sliding one in the bin in which it starts, since
    many would be in the first.

    Attributes:
        changed: windows in which each reading differs from the next, in the order of the readings.
        lagging: of those in which expected differs from counted, how many do because versions of lookups came late.
    """

    start: datetime
    closed: bool
    windows: int
    readings: Readings
    differing: int
    changed: tuple[int, int, int, int]
    bounded: int
    covered: int
    lagging: int = 0

    @property
    def split(self) -> Split:
        """The bin's difference by cause."""
        return split(self.readings, closed=self.closed)

    @property
    def changed_by(self) -> dict[str, int]:
        """Cause to windows that it changes, whatever the sign; causes that change none are there too."""
        lag, step, late, duplicate = self.changed
        given = {"residual" if self.closed else "not_yet_closed": lag, "sketch": step - self.lagging}
        return dict.fromkeys(CAUSES, 0) | given | {"lookup_lag": self.lagging, "late": late, "duplicate": duplicate}


@dataclass(frozen=True)
class WindowRow:
    """One window, or an item of it, with its five readings; bounds are the expected estimate's, None where exact.

    Attributes:
        without_value: readers that have no value for it, and so read 0.
        item: of windows that are taken apart by item.
        session_key: whose session it is; None of other windows.
        length_ms: of a session, from its first event to its last.
    """

    window_start: datetime
    window_end: datetime
    dimensions: Mapping[str, str]
    closed: bool
    readings: Readings
    lower: Decimal | None
    upper: Decimal | None
    without_value: tuple[str, ...] = ()
    item: str | None = None
    session_key: str | None = None
    length_ms: int | None = None

    @property
    def split(self) -> Split:
        """The window's difference by cause."""
        return split(self.readings, closed=self.closed)


@dataclass(frozen=True)
class GrainDiff:
    """All windows of one metric and grain on one day, summed per bin, and the worst of them, worst first.

    Attributes:
        bin_size: width of the bins.
    """

    grain: str
    bin_size: timedelta
    bins: tuple[Bin, ...]
    worst: tuple[WindowRow, ...]

    @property
    def windows(self) -> int:
        """Windows, each dimension apart, that any reader knows."""
        return sum(one.windows for one in self.bins)

    @property
    def differing(self) -> int:
        """Windows in which any two of the five readings differ."""
        return sum(one.differing for one in self.bins)

    @property
    def changed_by(self) -> dict[str, int]:
        """Cause to windows that it changes."""
        return {cause: sum(one.changed_by[cause] for one in self.bins) for cause in CAUSES}

    @property
    def sketched(self) -> int:
        """Windows whose estimate is not the exact value of the same events."""
        return self.changed_by["sketch"]

    @property
    def lagging(self) -> int:
        """Windows that differ because a version of a lookup came after the speed layer had read their events."""
        return self.changed_by["lookup_lag"]

    @property
    def bounded(self) -> int:
        """Windows that carry bounds."""
        return sum(one.bounded for one in self.bins)

    @property
    def covered(self) -> int:
        """Windows whose bounds hold the exact value of the events they speak of."""
        return sum(one.covered for one in self.bins)

    @property
    def split(self) -> Split:
        """The signed difference of all windows by cause."""
        return total(one.split for one in self.bins)


@dataclass(frozen=True)
class MetricDiff:
    """One metric on one day.

    Attributes:
        is_ratio: whether it is computed from two others; it has no slices, and its differences are theirs.
    """

    metric: str
    metric_version: str
    slices: SliceDiff
    grains: tuple[GrainDiff, ...]
    is_ratio: bool = False


def bin_width(window: AnyWindow) -> int:
    """The width of the bins of a day over which windows are added up, in ms.

    The least that divides a day, is no shorter than a quarter of an hour and, if any does, holds whole windows or
    periods. Windows that are no shorter than a day have one bin.
    """
    match window:
        case TumblingWindow():
            period = window.size_ms
        case SlidingWindow():
            period = milliseconds(window.period)
        case SessionWindow():
            period = 1
        case _:
            period = DAY_MS
    least = max(SMALLEST_BIN_MS, min(period, DAY_MS))
    widths = [DAY_MS // parts for parts in range(DAY_MS // least, 0, -1) if DAY_MS % parts == 0]
    return next((width for width in widths if width % period == 0), widths[0])
