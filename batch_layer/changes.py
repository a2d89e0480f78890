"""Which published values other runs would change, and by how much."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from clickhouse_connect.driver.client import Client

from infra.clickhouse import query_frame
from metrics.catalog import Catalog, ShownMetric
from serving.days import Days
from serving.presented import keys
from serving.views import DRIFT_TOLERANCE, batch_sql

_EXAMPLES = 5


@dataclass(frozen=True)
class Example:
    """A value that would change: its window and dimensions in words, and what it was and would be; "" where nothing."""

    window: str
    was: str
    now: str


@dataclass(frozen=True)
class Change:
    """What would change of a metric and grain.

    Attributes:
        windows: How many windows there are, before or after.
        changed: How many would have another value, appear or go.
        greatest: The greatest absolute difference; None where values are no numbers.
        examples: Those of the greatest differences.
    """

    metric: str
    grain: str
    windows: int
    changed: int
    greatest: float | None
    examples: tuple[Example, ...]


def changes(client: Client, catalog: Catalog, database: str, runs: Mapping[date, str]) -> list[Change]:
    """What would change, by metric and grain, were these runs shown; what would not change at all is not in it.

    Args:
        client: Of the source's database.
        catalog: Of the source.
        database: Its name.
        runs: By day, the run that it would show.
    """
    found = (_change(client, metric, grain, database, runs) for metric in catalog.shown for grain in metric.grains)
    return [change for change in found if change.changed]


def _change(client: Client, metric: ShownMetric, grain: str, database: str, runs: Mapping[date, str]) -> Change:
    sides = (Days(database, metric.versions), Days(database, metric.versions, instead=tuple(runs.items())))
    named = ", ".join(keys(metric))
    first, last = min(runs), max(runs)
    # a window that does not touch the days cannot change
    near = f"window_end > toDateTime64('{first} 00:00:00', 3, 'UTC') AND toDate(window_start) <= toDate('{last}')"
    both = "\nUNION ALL\n".join(
        f"SELECT {named}, ifNull(toString(value), 'none') AS shown, {side} AS side "
        f"FROM (\n{batch_sql(metric, grain, days)}\n) WHERE {near}"
        for side, days in enumerate(sides)
    )
    differs = "was != now"
    if "Float" in metric.value_type:
        # sums of floats come out in another order each time
        near = f"apart <= {DRIFT_TOLERANCE} * greatest(abs(toFloat64OrZero(was)), abs(toFloat64OrZero(now)))"
        differs = f"was != now AND NOT (was != '' AND now != '' AND {near})"
    apart = "abs(ifNull(toFloat64OrNull(now), 0) - ifNull(toFloat64OrNull(was), 0))"
    sql = (
        f"SELECT count() AS windows, countIf({differs}) AS changed, maxIf(apart, {differs}) AS greatest, "
        f"arraySlice(arrayReverseSort(e -> e.1, groupArrayIf((apart, window, was, now), {differs})), 1, {_EXAMPLES}) "
        f"AS examples FROM (SELECT arrayStringConcat([{_in_words(metric)}], ' ') AS window, "
        f"maxIf(shown, side = 0) AS was, maxIf(shown, side = 1) AS now, {apart} AS apart "
        f"FROM (\n{both}\n) GROUP BY {named})"
    )
    (row,) = query_frame(client, sql).to_dicts()
    examples = [tuple(each.values()) for each in row["examples"]]
    numbers = metric.value_type not in {"String", "Bool"} and not metric.value_type.startswith("Array")
    return Change(
        metric.name,
        grain,
        row["windows"],
        row["changed"],
        row["greatest"] if numbers and row["changed"] else None,
        tuple(Example(window, was, now) for _, window, was, now in examples),
    )


def _in_words(metric: ShownMetric) -> str:
    """The window's start and its dimensions as texts."""
    return ", ".join(f"toString({name})" for name in keys(metric) if name not in {"window_end", "length_ms"})
