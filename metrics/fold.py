"""The fold: from columns of events to partial states of all metrics that share slices and dimensions, in one pass.

Both layers run these functions, the speed layer on each chunk, the batch layer on each block that Spark hands it.
"""

from dataclasses import dataclass

import polars as pl

from metrics.aggregation import merge
from metrics.catalog import Catalog, Metric
from metrics.event import FIELD_PREFIX
from metrics.window import format_duration, milliseconds


@dataclass(frozen=True)
class Group:
    """Metrics with the same slices and dimensions, folded together.

    Attributes:
        id: Stable name, for example ``1m:country``.
        slice_width_ms: Width of a slice.
        by: The dimensions.
        metrics: The metrics, in the order of the catalog.
    """

    id: str
    slice_width_ms: int
    by: tuple[str, ...]
    metrics: tuple[Metric, ...]

    @property
    def keys(self) -> list[str]:
        """The columns that name a row of states: slice_start and the dimensions."""
        return ["slice_start", *self.by]


def groups(catalog: Catalog) -> tuple[Group, ...]:
    """The metrics of a catalog, grouped by slice width and dimensions."""
    members: dict[tuple[str, tuple[str, ...]], list[Metric]] = {}
    for metric in catalog.metrics:
        members.setdefault((format_duration(metric.slice_width), metric.by), []).append(metric)
    return tuple(
        Group(":".join([width, *by]), milliseconds(together[0].slice_width), by, tuple(together))
        for (width, by), together in members.items()
    )


def matches(metric: Metric) -> pl.Expr:
    """Whether a metric selects an event: a Boolean expression over the columns of events, never null."""
    return pl.lit(value=True) if metric.condition is None else metric.condition.expression


def dimension(name: str) -> pl.Expr:
    """A field as a dimension: its text, the empty text for NULL."""
    return pl.col(FIELD_PREFIX + name).cast(pl.String).fill_null("").alias(name)


def slice_start(width_ms: int) -> pl.Expr:
    """The start of the slice that an event's time falls into."""
    return (pl.col("event_time") // width_ms * width_ms).alias("slice_start")


def partial_states(group: Group, events: pl.DataFrame) -> pl.DataFrame:
    """Folds events, one row per slice and dimensions that any metric selects.

    Returns:
        slice_start (Int64, ms), the dimensions (String), and for each metric ``<metric>.events`` (UInt64, events
        folded) and ``<metric>.<state column>``, null where the metric selected no event.
    """
    result: pl.DataFrame | None = None
    for metric in group.metrics:
        argument = metric.agg.field
        selected = (events if metric.condition is None else events.filter(matches(metric))).select(
            slice_start(group.slice_width_ms),
            *(dimension(name) for name in group.by),
            *([] if argument is None else [pl.col(FIELD_PREFIX + argument).alias("argument")]),
        )
        counted = selected.group_by(group.keys).agg(pl.len().cast(pl.UInt64).alias(f"{metric.name}.events"))
        states = metric.agg.prepare(selected, group.keys).rename(
            {c.name: f"{metric.name}.{c.name}" for c in metric.agg.state}
        )
        folded = counted.join(states, on=group.keys, how="left")
        result = folded if result is None else result.join(folded, on=group.keys, how="full", coalesce=True)
    if result is None:
        msg = "a group has at least one metric"
        raise ValueError(msg)
    return result.select(list(state_schema(group)))


def state_schema(group: Group) -> dict[str, pl.DataType]:
    """Names and types of the columns of a group's states."""
    schema: dict[str, pl.DataType] = {"slice_start": pl.Int64()} | {name: pl.String() for name in group.by}
    for metric in group.metrics:
        schema[f"{metric.name}.events"] = pl.UInt64()
        schema |= {f"{metric.name}.{column.name}": column.dtype for column in metric.agg.state}
    return schema


def merge_states(group: Group, states: pl.DataFrame) -> pl.DataFrame:
    """Merges states to one sorted row per slice and dimensions, whatever the order of the rows."""
    result = states.select(group.keys).unique().sort(group.keys)
    for metric in group.metrics:
        events = f"{metric.name}.events"
        own = states.filter(pl.col(events) > 0)
        merged = own.group_by(group.keys).agg(pl.col(events).sum())
        for column in metric.agg.state:
            merged = merged.join(
                merge(column, own, group.keys, f"{metric.name}.{column.name}"), on=group.keys, how="left"
            )
        result = result.join(merged, on=group.keys, how="left", maintain_order="left")
    return result.select(list(state_schema(group)))


def metric_rows(group: Group, metric: Metric, states: pl.DataFrame) -> pl.DataFrame:
    """The states of one metric as its tables hold them: slice_start (ms), dimensions, events, state columns."""
    prefix = f"{metric.name}."
    return states.filter(pl.col(f"{prefix}events") > 0).select(
        *group.keys,
        pl.col(f"{prefix}events").alias("events"),
        *(pl.col(prefix + column.name).alias(column.name) for column in metric.agg.state),
    )
