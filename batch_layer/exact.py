"""Exact states in Spark SQL: for each slice or session and dimensions, three readings of each metric.

`exact` takes every well-formed event once: the first copy by (event id, event time) over all topic partitions, in the
order of topic partition and offset, and no id_conflict. `with_late` takes what was counted or late, `counted` what the
speed layer counted. The differences between the three are what the causes explain.

Conditions and arguments are Spark's own, from the same expressions: states of `counted` by one engine and expected
states by another check each other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from metrics.aggregation import PLACE_BITS
from metrics.by_value import Quantile
from metrics.catalog import Catalog, Metric
from metrics.disposition import COUNTED, ID_CONFLICT, LATE
from metrics.event import FIELD_PREFIX
from metrics.expression import Expression
from metrics.fold import SESSION_KEY, Group, groups
from metrics.session import SESSION_COLUMNS

READINGS = {
    "exact": "exact",
    "with_late": f"disposition IN ('{COUNTED}', '{LATE}')",
    "counted": f"disposition = '{COUNTED}'",
}
"""Reading to the condition under which it takes an event; also the Boolean columns that say so."""

SESSION_TIMES = tuple(name for name in SESSION_COLUMNS if name != "chain_events")
"""What names a session besides its key."""

ITEM = "item"


def within(time: str, spans: Sequence[tuple[int, int]]) -> Column:
    """Whether a column of ms lies in one of some stretches of time, ``[start, end)``."""
    return F.expr(" OR ".join(f"(`{time}` >= {start}L AND `{time}` < {end}L)" for start, end in spans))


Cut = Callable[[DataFrame, Group], DataFrame]
"""Gives the events of a group of sessions the columns `SESSION_TIMES`; see `batch_layer.sessions.SessionCut`."""


@dataclass(frozen=True)
class ExactStates:
    """States of metrics that share slices or sessions, and dimensions.

    Attributes:
        group: Of the metrics.
        metrics: Which, in order.
        by_value: Whether a row stands for a distinct value.
        frame: The group's `time_columns` (ms), its `dimension_column`s and, for the n-th metric and each reading, the
            columns `column(n, reading, ...)`: `events` and the state's. By value it has `item`, and for each reading
            how many events have it.
    """

    group: Group
    metrics: tuple[Metric, ...]
    by_value: bool
    frame: DataFrame


def column(number: int, reading: str, name: str) -> str:
    """Where the n-th metric's reading of a state's column stands."""
    return f"m{number}_{reading}_{name}"


def dimension_column(name: str) -> str:
    """Where a dimension stands: apart from all other columns, whatever its name."""
    return f"d_{name}"


def time_columns(group: Group) -> tuple[str, ...]:
    """The columns that say when, in ms, of a slice or a session."""
    return SESSION_TIMES if group.session else ("slice_start",)


def key_columns(group: Group) -> list[str]:
    """The columns that name a row of exact states."""
    return [*time_columns(group), *map(dimension_column, group.dimensions)]


def events_of(events: DataFrame, inside: Column) -> DataFrame:
    """Events with their place in the log, and a Boolean for each reading that says whether it takes the event.

    Args:
        events: Rows of `batch_layer.rows` that are events, all copies of each.
        inside: Whether an event is of the days asked for; others are there for the sake of sessions and alerts.
    """
    copies = Window.partitionBy("event_id", "event_time").orderBy(
        F.col("disposition") == ID_CONFLICT, "topic_partition", "offset"
    )
    first = (F.row_number().over(copies) == 1) & (F.col("disposition") != ID_CONFLICT)
    place = F.col("topic_partition").cast("long") * F.lit(1 << PLACE_BITS) + F.col("offset")
    return (
        events.withColumns({"exact": first, "place": place, "inside": inside})
        .withColumns({reading: F.expr(condition) for reading, condition in READINGS.items() if reading != "exact"})
        .drop("kind", "group", "bucket", "day", "payload", "record_time", "reason")
    )


def exact_states(catalog: Catalog, events: DataFrame, cut: Cut) -> list[ExactStates]:
    """One frame for all metrics of a group that keep plain states, one for each that is kept by value.

    Args:
        catalog: Of the metrics.
        events: From `events_of`.
        cut: Gives the events of session keys their sessions.
    """
    inside = events.filter("inside")
    found = []
    for group in groups(catalog):
        for metrics in _together(group):
            prepared = _prepared(events if group.session else inside, group, metrics)
            if group.session:
                prepared = cut(prepared, group)
            by_value = metrics[0].agg.by_value
            made = _items(prepared, group) if by_value else _states(prepared, group, metrics)
            found.append(ExactStates(group, metrics, by_value, made))
    return found


def _together(group: Group) -> Iterable[tuple[Metric, ...]]:
    """The metrics of a group by what can be computed in one aggregation."""
    apart: dict[object, list[Metric]] = {}
    for metric in group.metrics:
        condition = _condition(metric)
        if metric.agg.by_value:
            # the quantiles of one argument share its values
            kind: object = (condition, _item(metric))
        else:
            # each condition has sessions of its own
            kind = (_in_order(metric), condition if group.session else None)
        apart.setdefault(kind, []).append(metric)
    return map(tuple, apart.values())


def _prepared(events: DataFrame, group: Group, metrics: Sequence[Metric]) -> DataFrame:
    """What an aggregation reads: keys, readings, and each condition and argument once, under its text's own column."""
    dimensions = {name: F.expr(text_sql(FIELD_PREFIX + name)) for name in group.by}
    if group.session:
        dimensions = {SESSION_KEY: F.expr(text_sql(group.session_key))} | dimensions
    columns = {dimension_column(name): text for name, text in dimensions.items()}
    if not group.session:
        columns["slice_start"] = F.col("event_time") - F.col("event_time") % F.lit(group.slice_width_ms)
    columns |= {name: F.col(name) for name in ("event_time", "place", *READINGS)}
    if metrics[0].agg.by_value:
        columns[ITEM] = F.expr(_item(metrics[0]))
    else:
        for number, metric in enumerate(metrics):
            columns |= {_argument(number, n): F.expr(_sql(e)) for n, e in enumerate(metric.agg.arguments)}
            columns[_taken(number)] = F.expr(_condition(metric))
    chosen = events.filter(" OR ".join(f"`{reading}`" for reading in READINGS))
    chosen = chosen.filter(" OR ".join(sorted({f"({_condition(metric)})" for metric in metrics})))
    return chosen.select(*(value.alias(name) for name, value in columns.items()))


def _states(prepared: DataFrame, group: Group, metrics: Sequence[Metric]) -> DataFrame:
    keys = key_columns(group)
    if any(map(_in_order, metrics)):
        # A sum of floats depends on its order: all events of a row are added up in one task, in the order of time.
        prepared = prepared.repartition(*keys).sortWithinPartitions(*keys, "event_time", "place")
    values = []
    for number, metric in enumerate(metrics):
        arguments = [f"`{_argument(number, n)}`" for n in range(len(metric.agg.arguments))]
        for reading in READINGS:
            taken = f"(`{_taken(number)}` AND `{reading}`)"
            state = {"events": f"count_if({taken})"} | metric.agg.spark_state(arguments, taken)
            values += [F.expr(sql).alias(column(number, reading, name)) for name, sql in state.items()]
    return prepared.groupBy(*keys).agg(*values)


def _items(prepared: DataFrame, group: Group) -> DataFrame:
    """Groups by the value, so that one shuffle answers all three readings; NULL is a row too: its events count."""
    counts = (F.expr(f"count_if(`{reading}`)").alias(reading) for reading in READINGS)
    return prepared.groupBy(*key_columns(group), ITEM).agg(*counts)


def _in_order(metric: Metric) -> bool:
    return any(state.tolerance is not None for state in metric.agg.state)


def _condition(metric: Metric) -> str:
    return "true" if metric.condition is None else metric.condition.spark_holds


def _sql(expression: Expression) -> str:
    """An argument, as `metrics.fold.argument` has it: never the negative zero."""
    return f"({expression.spark} + 0D)" if expression.type.kind == "float" else expression.spark


def _item(metric: Metric) -> str:
    """The value that is told apart: of its own type where it is ordered, else its text."""
    (argument,) = metric.agg.arguments
    return _sql(argument) if isinstance(metric.agg, Quantile) else f"CAST({_sql(argument)} AS string)"


def text_sql(name: str) -> str:
    """A column as a dimension, as `metrics.fold.dimension` has it: its text, the empty text for NULL."""
    quoted = name.replace("`", "``")
    return f"coalesce(CAST(`{quoted}` AS string), '')"


def _taken(number: int) -> str:
    return f"t{number}"


def _argument(number: int, position: int) -> str:
    return f"a{number}_{position}"
