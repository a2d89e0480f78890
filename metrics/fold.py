"""The fold: from columns of events to partial states of all metrics that share slices and dimensions, in one pass.

Both layers run these functions, the speed layer on each chunk, the batch layer in Spark's tasks on each run of offsets.
"""

from dataclasses import dataclass

import polars as pl

from metrics.aggregation import ARGUMENTS, PLACE_BITS
from metrics.catalog import Catalog, Metric
from metrics.event import FIELD_PREFIX
from metrics.session import SESSION_COLUMNS, assign_sessions
from metrics.state import merge_states as merge_rows
from metrics.window import SessionWindow, format_duration, milliseconds

SESSION_KEY = "session_key"


@dataclass(frozen=True)
class Group:
    """Metrics with the same slices and dimensions, folded together.

    Sessions are folded by the millisecond: their slices are the instants at which a key has events, until
    `session_rows` joins these.

    Attributes:
        id: Stable name, for example ``1m:country``.
        slice_width_ms: Width of a slice.
        by: The dimensions.
        metrics: The metrics, in the order of the catalog.
        session: The sessions that they are of, or None.
        session_key: Of sessions, the column of events that holds their key.
    """

    id: str
    slice_width_ms: int
    by: tuple[str, ...]
    metrics: tuple[Metric, ...]
    session: SessionWindow | None = None
    session_key: str = ""

    @property
    def dimensions(self) -> list[str]:
        """The columns that name a row besides its time: the dimensions, after the key of a session."""
        return [*([SESSION_KEY] if self.session else []), *self.by]

    @property
    def keys(self) -> list[str]:
        """The columns that name a row of states."""
        return ["slice_start", *self.dimensions]


def groups(catalog: Catalog) -> tuple[Group, ...]:
    """The metrics of a catalog, grouped by slices or sessions and dimensions."""
    members: dict[tuple[str, tuple[str, ...]], list[Metric]] = {}
    for metric in catalog.metrics:
        slices = str(metric.session).replace(" ", "_") if metric.session else format_duration(metric.slice_width)
        members.setdefault((slices, metric.by), []).append(metric)
    return tuple(
        Group(
            ":".join([slices, *by]),
            milliseconds(together[0].slice_width),
            by,
            tuple(together),
            together[0].session,
            _session_key(catalog) if together[0].session else "",
        )
        for (slices, by), together in members.items()
    )


def _session_key(catalog: Catalog) -> str:
    return "event_id" if catalog.key == catalog.event_id else FIELD_PREFIX + (catalog.key or "")


def matches(metric: Metric) -> pl.Expr:
    """Whether a metric selects an event: a Boolean expression over the columns of events, never null."""
    return pl.lit(value=True) if metric.condition is None else metric.condition.holds


def dimension(name: str) -> pl.Expr:
    """A field as a dimension: its text, the empty text for NULL."""
    return pl.col(FIELD_PREFIX + name).cast(pl.String).fill_null("").alias(name)


def slice_start(width_ms: int) -> pl.Expr:
    """The start of the slice that an event's time falls into."""
    return (pl.col("event_time") // width_ms * width_ms).alias("slice_start")


def place() -> pl.Expr:
    """Where an event stands in the log, as one number that orders events of the same time."""
    return (pl.col("topic_partition").cast(pl.Int64) * (1 << PLACE_BITS) + pl.col("offset")).alias("place")


def selected(group: Group, metric: Metric, events: pl.DataFrame) -> pl.DataFrame:
    """The events that a metric selects: the group's keys and what `Aggregation.prepare` needs."""
    chosen = events if metric.condition is None else events.filter(matches(metric))
    return chosen.select(
        slice_start(group.slice_width_ms),
        *([pl.col(group.session_key).cast(pl.String).fill_null("").alias(SESSION_KEY)] if group.session else []),
        *(dimension(name) for name in group.by),
        *(one.polars.alias(name) for one, name in zip(metric.agg.arguments, ARGUMENTS, strict=False)),
        *([pl.col("event_time"), place()] if metric.agg.needs_place else []),
    )


def partial_states(group: Group, events: pl.DataFrame) -> pl.DataFrame:
    """Folds events, one row per slice and dimensions that any metric selects.

    Returns:
        The group's keys (slice_start Int64, ms; others String), and for each metric ``<metric>.events`` (UInt64, events
        folded) and ``<metric>.<state column>``, null where the metric selected no event.
    """
    result: pl.DataFrame | None = None
    for metric in group.metrics:
        folded = _named(metric, metric.agg.prepare(selected(group, metric, events), group.keys))
        result = folded if result is None else result.join(folded, on=group.keys, how="full", coalesce=True)
    if result is None:
        msg = "a group has at least one metric"
        raise ValueError(msg)
    return result.select(list(state_schema(group)))


def state_schema(group: Group) -> dict[str, pl.DataType]:
    """Names and types of the columns of a group's states."""
    schema: dict[str, pl.DataType] = {"slice_start": pl.Int64()} | {name: pl.String() for name in group.dimensions}
    for metric in group.metrics:
        schema[f"{metric.name}.events"] = pl.UInt64()
        schema |= {f"{metric.name}.{column.name}": column.dtype for column in metric.agg.state}
    return schema


def merge_states(group: Group, states: pl.DataFrame) -> pl.DataFrame:
    """Merges states to one sorted row per slice and dimensions, whatever the order of the rows."""
    result = states.select(group.keys).unique().sort(group.keys)
    for metric in group.metrics:
        merged = _named(metric, merge_rows(metric.agg.state, metric_rows(group, metric, states), group.keys))
        result = result.join(merged, on=group.keys, how="left", maintain_order="left")
    return result.select(list(state_schema(group)))


def metric_rows(group: Group, metric: Metric, states: pl.DataFrame) -> pl.DataFrame:
    """The states of one metric as its tables hold them: the group's keys, events, state columns."""
    prefix = f"{metric.name}."
    return states.filter(pl.col(f"{prefix}events") > 0).select(
        *group.keys,
        pl.col(f"{prefix}events").alias("events"),
        *(pl.col(prefix + column.name).alias(column.name) for column in metric.agg.state),
    )


def session_rows(group: Group, metric: Metric, states: pl.DataFrame) -> pl.DataFrame:
    """The sessions of one metric from the states of all instants of some keys.

    Returns:
        window_start, window_end, length_ms, chain_events (see `metrics.session`), session_key, the dimensions, events
        and the state columns; sorted by key and start.
    """
    assert group.session is not None
    rows = metric_rows(group, metric, states).rename({"slice_start": "event_time"})
    assigned = assign_sessions(rows, group.dimensions, group.session)
    keys = [*SESSION_COLUMNS, *group.dimensions]
    return merge_rows(metric.agg.state, assigned.drop("event_time"), keys).sort(*group.dimensions, "window_start")


def _named(metric: Metric, rows: pl.DataFrame) -> pl.DataFrame:
    """The columns `events` and of the state under the metric's name."""
    return rows.rename({name: f"{metric.name}.{name}" for name in ("events", *(c.name for c in metric.agg.state))})
