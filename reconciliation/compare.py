"""The comparison itself, made inside ClickHouse: one statement for the slices of all metrics, one a metric for windows.

Only sums per bin, a few worst windows and a few differing slices leave the database.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

from metrics.catalog import Metric, RatioMetric, ShownMetric
from metrics.window import from_epoch_ms
from reconciliation import slice_sql, window_sql
from reconciliation.causes import Readings
from reconciliation.certificate import Comparison
from reconciliation.diff import (
    NO_SLICES,
    Bin,
    GrainDiff,
    MetricDiff,
    Query,
    Scope,
    SliceDiff,
    SliceRow,
    WindowRow,
    bin_width,
)
from reconciliation.rows_sql import READERS

LARGEST_SAMPLE = 50
"""Differing slices that are shown, of those that are counted."""

LARGEST_WORST = 12
"""Windows that are shown per metric and grain."""

METRICS_AT_ONCE = 2
"""Metrics of a day that are examined side by side: a statement is planned by one thread."""


def metric_diffs(query: Query, metrics: Sequence[ShownMetric], scope: Scope) -> tuple[MetricDiff, ...]:
    """Compare metrics of the scope's run, in order; only rows of their present versions are read."""
    slices = slice_diffs(query, [metric for metric in metrics if isinstance(metric, Metric)], scope)
    with ThreadPoolExecutor(METRICS_AT_ONCE) as pool:
        grains = list(pool.map(lambda metric: grain_diffs(query, metric, scope), metrics))
    return tuple(
        MetricDiff(
            metric=metric.name,
            metric_version=metric.metric_version,
            slices=slices.get(metric.name, NO_SLICES),
            grains=its_grains,
            is_ratio=isinstance(metric, RatioMetric),
        )
        for metric, its_grains in zip(metrics, grains, strict=True)
    )


def slice_diffs(query: Query, metrics: Sequence[Metric], scope: Scope) -> Mapping[str, SliceDiff]:
    """Slices of both sides by key, and a sample of those that differ, for each metric."""
    if not metrics:
        return {}
    statement = "\nUNION ALL\n".join(slice_sql.slice_totals(metric, scope.database) for metric in metrics)
    totals = {row["metric"]: row for row in query(statement, scope.parameters(metrics)).iter_rows(named=True)}
    return {metric.name: _slice_diff(query, metric, scope, totals[metric.name]) for metric in metrics}


def grain_diffs(query: Query, metric: ShownMetric, scope: Scope) -> tuple[GrainDiff, ...]:
    """Windows of each grain: sums per bin, and those in which the readings lie furthest apart."""
    widths = [bin_width(window) for window in metric.windows]
    joined = metric.name in scope.joined
    statement = window_sql.summary(metric, scope.database, widths, LARGEST_WORST, joined=joined)
    rows = list(query(statement, scope.parameters(metric.operands)).iter_rows(named=True))
    diffs = []
    for index, (grain, width) in enumerate(zip(metric.grains, widths, strict=True)):
        own = sorted((row for row in rows if row["grain"] == index), key=lambda row: (row["bin"], not row["is_closed"]))
        worst = sorted(
            ((tuple(one.values()), bool(row["is_closed"])) for row in own for one in row["worst"]),
            key=lambda pair: pair[0][:4],
        )
        diffs.append(
            GrainDiff(
                grain=grain,
                bin_size=timedelta(milliseconds=width),
                bins=tuple(_bin(row) for row in own),
                worst=tuple(_window_row(metric, one, closed=closed) for one, closed in worst[:LARGEST_WORST]),
            )
        )
    return tuple(diffs)


def _slice_diff(query: Query, metric: Metric, scope: Scope, row: Mapping[str, Any]) -> SliceDiff:
    comparison = Comparison(
        compared=row["compared"],
        equal=row["equal"],
        not_yet_closed=row["not_yet_closed"],
        residual=row["residual"],
    )
    samples: tuple[SliceRow, ...] = ()
    if comparison.compared > comparison.equal:
        statement = slice_sql.differing_slices(metric, scope.database, LARGEST_SAMPLE)
        rows = query(statement, scope.parameters([metric]))
        samples = tuple(_slice_row(metric, one) for one in rows.iter_rows(named=True))
    return SliceDiff(comparison, row["only_speed"], row["only_expected"], samples)


def _bin(row: Mapping[str, Any]) -> Bin:
    lag, step, late, duplicate = row["changed"]
    readings = Readings(*map(Decimal, row["sums"]))
    if row["lagging"] in {0, step}:
        # sums of floats, made one by one, would leave a rest
        readings = readings.lagging(None if row["lagging"] else Decimal(0))
    return Bin(
        start=from_epoch_ms(row["bin"]),
        closed=bool(row["is_closed"]),
        windows=row["windows"],
        readings=readings,
        differing=row["differing"],
        changed=(lag, step, late, duplicate),
        lagging=row["lagging"],
        bounded=row["bounded"],
        covered=row["covered"],
    )


def _window_row(metric: ShownMetric, row: Sequence[Any], *, closed: bool) -> WindowRow:
    _, start, end, named, item, readings, has_value, (lower, upper), length_ms = row
    key, dimensions = _named(metric, named)
    return WindowRow(
        window_start=from_epoch_ms(start),
        window_end=from_epoch_ms(end),
        dimensions=dimensions,
        closed=closed,
        readings=Readings(*map(Decimal, readings)),
        lower=Decimal(lower) if lower else None,
        upper=Decimal(upper) if upper else None,
        without_value=tuple(reader for reader, has in zip(READERS, has_value, strict=True) if not has),
        item=item if window_sql.by_item(metric) else None,
        session_key=key,
        length_ms=length_ms if metric.session else None,
    )


def _slice_row(metric: Metric, row: Mapping[str, Any]) -> SliceRow:
    def side(name: str) -> tuple[int | None, dict[str, str]]:
        if not row[f"in_{name}"]:
            return None, {}
        length = {"length_ms": str(row[f"{name}_length"])} if metric.session else {}
        states = {column.name: row[f"{name}_s{index}"] for index, column in enumerate(metric.agg.state)}
        return row[f"{name}_events"], length | states

    speed_events, speed = side("speed")
    expected_events, expected = side("expected")
    key, dimensions = _named(metric, [row[f"d{index}"] for index in range(len(metric.by) + bool(metric.session))])
    return SliceRow(
        slice_start=row["slice_start"],
        slice_end=row["slice_end"],
        dimensions=dimensions,
        closed=bool(row["closed"]),
        speed_events=speed_events,
        expected_events=expected_events,
        speed=speed,
        expected=expected,
        session_key=key,
    )


def _named(metric: ShownMetric, values: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The key of a session, or None, and the dimensions."""
    key, rest = (values[0], values[1:]) if metric.session else (None, values)
    return key, dict(zip(metric.by, rest, strict=True))
