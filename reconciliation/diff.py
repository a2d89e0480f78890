"""The comparison itself, made inside ClickHouse: slices state by state, windows reading by reading.

Slices decide: `speed_<m> FINAL` against `expected_<m>` of the published run, events and whole states, register maps
too. Windows explain: the five readings that `causes` splits. Only sums per bin, a few worst windows and a few differing
slices leave the database.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

import polars as pl

from metrics.catalog import Metric
from metrics.window import DAY_MS, Window, from_epoch_ms, to_epoch_ms
from reconciliation import diff_sql
from reconciliation.causes import Readings, Split, split, total
from reconciliation.certificate import Comparison

LARGEST_SAMPLE = 50
"""Differing slices that are shown, of those that are counted."""

LARGEST_WORST = 12
"""Windows that are shown per metric and grain."""

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
    """

    database: str
    partition: date
    run_id: str
    open_from: datetime | None

    def parameters(self, metric: Metric) -> dict[str, Any]:
        """What the statements bind."""
        day = Window.of_day(self.partition)
        return {
            "version": metric.metric_version,
            "run_id": self.run_id,
            "day": self.partition.isoformat(),
            "start": to_epoch_ms(day.start),
            "end": to_epoch_ms(day.end),
            "open_from": to_epoch_ms(self.open_from or datetime.fromtimestamp(0, UTC)),
        }


@dataclass(frozen=True)
class SliceRow:
    """One slice whose published row differs from the expected one; a side without a row has no events and no state.

    Attributes:
        speed: state column to its text, shortened.
        expected: the same of the expected row.
    """

    slice_start: datetime
    dimensions: Mapping[str, str]
    closed: bool
    speed_events: int | None
    expected_events: int | None
    speed: Mapping[str, str]
    expected: Mapping[str, str]


@dataclass(frozen=True)
class SliceDiff:
    """All slices of one metric and day. `only_speed` and `only_expected` are among the differing ones."""

    comparison: Comparison
    only_speed: int
    only_expected: int
    samples: tuple[SliceRow, ...]


@dataclass(frozen=True)
class Bin:
    """Sums over the windows that start in one bin and are all closed or all open."""

    start: datetime
    closed: bool
    windows: int
    readings: Readings
    differing: int
    sketched: int
    bounded: int
    covered: int

    @property
    def split(self) -> Split:
        """The bin's difference by cause."""
        return split(self.readings, closed=self.closed)


@dataclass(frozen=True)
class WindowRow:
    """One window with its five readings; bounds are those of the expected estimate, None where it is exact."""

    window_start: datetime
    window_end: datetime
    dimensions: Mapping[str, str]
    closed: bool
    readings: Readings
    lower: int | None
    upper: int | None

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
    def sketched(self) -> int:
        """Windows whose estimate is not the exact value of the same events."""
        return sum(one.sketched for one in self.bins)

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
    """One metric on one day."""

    metric: str
    metric_version: str
    slices: SliceDiff
    grains: tuple[GrainDiff, ...]


def metric_diff(query: Query, metric: Metric, scope: Scope) -> MetricDiff:
    """Compare one metric of the scope's run; only rows of the metric's present version are read."""
    return MetricDiff(
        metric=metric.name,
        metric_version=metric.metric_version,
        slices=slice_diff(query, metric, scope),
        grains=tuple(grain_diff(query, metric, grain, scope) for grain in metric.grains),
    )


def slice_diff(query: Query, metric: Metric, scope: Scope) -> SliceDiff:
    """Slices of both sides by key, and a sample of those that differ."""
    parameters = scope.parameters(metric)
    row = query(diff_sql.slice_totals(metric, scope.database), parameters).row(0, named=True)
    comparison = Comparison(
        compared=row["compared"],
        equal=row["equal"],
        not_yet_closed=row["not_yet_closed"],
        residual=row["residual"],
    )
    samples: tuple[SliceRow, ...] = ()
    if comparison.compared > comparison.equal:
        rows = query(diff_sql.differing_slices(metric, scope.database, LARGEST_SAMPLE), parameters)
        samples = tuple(_slice_row(metric, one) for one in rows.iter_rows(named=True))
    return SliceDiff(comparison, row["only_speed"], row["only_expected"], samples)


def grain_diff(query: Query, metric: Metric, grain: str, scope: Scope) -> GrainDiff:
    """Windows of one grain: sums per bin, and those in which the readings lie furthest apart."""
    parameters = scope.parameters(metric)
    bin_ms = bin_width(metric.window(grain).size_ms)
    bins = query(diff_sql.bins(metric, grain, scope.database, bin_ms), parameters)
    worst = query(diff_sql.worst_windows(metric, grain, scope.database, LARGEST_WORST), parameters)
    return GrainDiff(
        grain=grain,
        bin_size=timedelta(milliseconds=bin_ms),
        bins=tuple(_bin(row) for row in bins.iter_rows(named=True)),
        worst=tuple(_window_row(metric, row) for row in worst.iter_rows(named=True)),
    )


def bin_width(window_ms: int) -> int:
    """The least bin that holds whole windows, divides a day and is no shorter than a quarter of an hour, in ms."""
    return next(
        width
        for width in range(window_ms, DAY_MS + 1, window_ms)
        if width >= min(SMALLEST_BIN_MS, DAY_MS) and DAY_MS % width == 0
    )


def _bin(row: dict[str, Any]) -> Bin:
    return Bin(
        start=from_epoch_ms(row["bin"]),
        closed=bool(row["is_closed"]),
        windows=row["windows"],
        readings=_readings(row, "sum"),
        differing=row["differing"],
        sketched=row["sketched"],
        bounded=row["bounded"],
        covered=row["covered"],
    )


def _window_row(metric: Metric, row: dict[str, Any]) -> WindowRow:
    return WindowRow(
        window_start=row["window_start"],
        window_end=row["window_end"],
        dimensions=_dimensions(metric, row),
        closed=bool(row["is_closed"]),
        readings=_readings(row, "text"),
        lower=row["lower_bound"],
        upper=row["upper_bound"],
    )


def _slice_row(metric: Metric, row: dict[str, Any]) -> SliceRow:
    def side(name: str) -> tuple[int | None, dict[str, str]]:
        if not row[f"in_{name}"]:
            return None, {}
        states = {column.name: row[f"{name}_s{index}"] for index, column in enumerate(metric.agg.state)}
        return row[f"{name}_events"], states

    speed_events, speed = side("speed")
    expected_events, expected = side("expected")
    return SliceRow(
        slice_start=row["slice_start"],
        dimensions=_dimensions(metric, row),
        closed=bool(row["closed"]),
        speed_events=speed_events,
        expected_events=expected_events,
        speed=speed,
        expected=expected,
    )


def _readings(row: dict[str, Any], suffix: str) -> Readings:
    return Readings.of(*(Decimal(row[f"{reader}_{suffix}"]) for reader in diff_sql.READERS))


def _dimensions(metric: Metric, row: dict[str, Any]) -> dict[str, str]:
    return {name: row[f"d{index}"] for index, name in enumerate(metric.by)}
