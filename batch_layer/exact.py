"""Exact values in Spark SQL: for each window and dimensions, three readings of each metric.

`exact` takes every well-formed event once: the first copy by (event id, event time) over all topic partitions, in the
order of topic partition and offset, and no id_conflict. `with_late` takes what was counted or late, `counted` what the
speed layer counted. The differences between the three are what the causes explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from batch_layer.rows import EVENT, argument_column, dimension_column, flag_column
from metrics.aggregation import Count, Distinct
from metrics.catalog import Catalog, Metric
from metrics.disposition import COUNTED, ID_CONFLICT, LATE

READINGS = {
    "exact": "exact",
    "with_late": f"disposition IN ('{COUNTED}', '{LATE}')",
    "counted": f"disposition = '{COUNTED}'",
}
"""Reading to the condition under which it takes an event."""

_ANY_READING = " OR ".join(f"({condition})" for condition in READINGS.values())


@dataclass(frozen=True)
class ExactValues:
    """Windows of some metrics that share dimensions.

    Attributes:
        metrics: Which, in order; the n-th metric's columns are named by `column(n, ...)`.
        frame: size_ms (of the window), window_start (ms), `dimension_column`s, and per metric `events`, the
            readings, and `seen`: whether any of them took an event of the window.
    """

    metrics: tuple[Metric, ...]
    frame: DataFrame


def column(number: int, reading: str) -> str:
    """Where the n-th metric's reading stands; `events` is the number of events in its exact value."""
    return f"m{number}_{reading}"


def events_of(rows: DataFrame) -> DataFrame:
    """The events among rows, with `exact`: whether the event is the one copy that exact values take."""
    copies = Window.partitionBy("event_id", "event_time").orderBy(
        F.col("disposition") == ID_CONFLICT, "topic_partition", "offset"
    )
    first = (F.row_number().over(copies) == 1) & (F.col("disposition") != ID_CONFLICT)
    return rows.filter(F.col("kind") == EVENT).drop("kind", "group", "bucket", "payload").withColumn("exact", first)


def exact_values(catalog: Catalog, events: DataFrame) -> list[ExactValues]:
    """One frame for all countable metrics that share dimensions, one for each distinct count."""
    together: dict[tuple[str, ...], list[Metric]] = {}
    for metric in catalog.metrics:
        if not isinstance(metric.agg, Distinct):
            together.setdefault(metric.by, []).append(metric)
    return [
        *(_additive(events, by, metrics) for by, metrics in together.items()),
        *(_distinct(events, metric) for metric in catalog.metrics if isinstance(metric.agg, Distinct)),
    ]


def _additive(events: DataFrame, by: tuple[str, ...], metrics: Sequence[Metric]) -> ExactValues:
    keys = ["size_ms", "window_start", *map(dimension_column, by)]
    values = [
        value
        for number, metric in enumerate(metrics)
        for value in (
            _count(metric, READINGS["exact"]).alias(column(number, "events")),
            F.expr(f"coalesce(bool_or(`{flag_column(metric)}` AND ({_ANY_READING})), false)").alias(
                column(number, "seen")
            ),
            *(_measure(metric, condition).alias(column(number, reading)) for reading, condition in READINGS.items()),
        )
    ]
    return ExactValues(tuple(metrics), _windowed(events, metrics).groupBy(*keys).agg(*values))


def _distinct(events: DataFrame, metric: Metric) -> ExactValues:
    """Groups by the value first, so that one shuffle answers all three readings without a copy of the events each."""
    keys = ["size_ms", "window_start", *map(dimension_column, metric.by)]
    value = argument_column(metric)
    seen = (
        _windowed(events.filter(flag_column(metric)), [metric])
        .groupBy(*keys, value)
        .agg(
            F.expr(f"count_if({READINGS['exact']})").alias("events"),
            F.expr(f"bool_or({_ANY_READING})").alias("seen"),
            *(F.expr(f"bool_or({condition})").alias(reading) for reading, condition in READINGS.items()),
        )
    )
    frame = seen.groupBy(*keys).agg(
        F.sum("events").alias(column(0, "events")),
        F.expr("bool_or(seen)").alias(column(0, "seen")),
        *(F.expr(f"count_if({r} AND `{value}` IS NOT NULL)").alias(column(0, r)) for r in READINGS),
    )
    return ExactValues((metric,), frame)


def _windowed(events: DataFrame, metrics: Sequence[Metric]) -> DataFrame:
    """Each event once per size of window that the metrics declare."""
    sizes = sorted({window.size_ms for metric in metrics for window in metric.windows})
    sized = events.withColumn("size_ms", F.explode(F.array(*(F.lit(size).cast("long") for size in sizes))))
    return sized.withColumn("window_start", F.col("event_time") - F.col("event_time") % F.col("size_ms"))


def _count(metric: Metric, condition: str) -> Column:
    return F.expr(f"count_if(`{flag_column(metric)}` AND {condition})")


def _measure(metric: Metric, condition: str) -> Column:
    if isinstance(metric.agg, Count):
        return _count(metric, condition)
    kind = f"decimal(38,{metric.agg.state[0].dtype.scale})"
    taken = f"CASE WHEN `{flag_column(metric)}` AND {condition} THEN `{argument_column(metric)}` END"
    return F.expr(f"coalesce(CAST(sum({taken}) AS {kind}), CAST(0 AS {kind}))")
