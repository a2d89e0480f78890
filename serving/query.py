"""A typed question to a metric's views, and its rows: what the API answers and `lockstep query` prints."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal, get_args

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from metrics.catalog import Catalog, ShownMetric
from serving.days import Days
from serving.views import batch_sql, dimensions, view_name

Layer = Literal["served", "speed", "batch"]
LAYERS: tuple[str, ...] = get_args(Layer)
SUFFIXES = {"served": "", "speed": "__speed", "batch": "__batch"}

DEFAULT_LIMIT = 10_000
LARGEST_LIMIT = 1_000_000
_DAYS_LISTED = 5

Number = int | float | Decimal
Item = dict[str, Any]
"""One of the most frequent values: `item` and `count`."""

Value = Number | str | list[Item] | None
"""A number; what a `last` was; the items of a `top`; None where no event has a value."""


class QueryError(ValueError):
    """A question that cannot be asked; the text names the rule, the value got and the way out."""


class UnknownMetricError(QueryError):
    """The catalog has no metric of that name; the text lists those it has."""


@dataclass(frozen=True)
class Query:
    """Which windows of a metric to read.

    Attributes:
        metric: the metric.
        grain: one of its grains.
        start: windows that start at or after this; None for the first. Aware.
        end: windows that start before this; None for the last. Aware.
        by: dimension -> the values wanted; a dimension left out is not filtered. Of sessions `session_key` is one.
        layer: served (each window once), speed or batch.
        limit: most rows returned; of more, the latest.
        version: a metric version, or its first digits, to read instead of the one that the metric's name shows.
        as_of: what the batch layer had published by then; None: what is shown now. Aware.
    """

    metric: ShownMetric
    grain: str
    start: datetime | None = None
    end: datetime | None = None
    by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    layer: str = "served"
    limit: int = DEFAULT_LIMIT
    version: str | None = None
    as_of: datetime | None = None

    def __post_init__(self) -> None:
        metric = self.metric
        if self.grain not in metric.grains:
            known = ", ".join(metric.grains)
            msg = f"metric `{metric.name}` has no grain `{self.grain}`. its grains are: {known}"
            raise QueryError(msg)
        if self.layer not in LAYERS:
            msg = f"unknown layer `{self.layer}`. the layers are: {', '.join(LAYERS)}"
            raise QueryError(msg)
        for name in self.by:
            if name not in dimensions(metric):
                known = f"its dimensions are: {', '.join(dimensions(metric))}" if dimensions(metric) else "it has none"
                msg = f"metric `{metric.name}` has no dimension `{name}`. {known}"
                raise QueryError(msg)
        if self.as_of is not None and (self.layer != "batch" or self.version is not None):
            msg = (
                f"`as_of` asks what batch had published of the version that is shown; got layer `{self.layer}`"
                f"{f' and version `{self.version}`' if self.version else ''}. speed keeps no history: leave them out"
            )
            raise QueryError(msg)
        if not 1 <= self.limit <= LARGEST_LIMIT:
            msg = f"`limit` must be between 1 and {LARGEST_LIMIT}; got {self.limit}. ask for a shorter span of time"
            raise QueryError(msg)
        if self.start is not None and self.end is not None and self.start >= self.end:
            msg = f"`from` must lie before `to`; got {iso(self.start)} and {iso(self.end)}. `to` is exclusive"
            raise QueryError(msg)


@dataclass(frozen=True)
class Row:
    """One window of one combination of dimensions, ``[window_start, window_end)``, as one layer gives it.

    `lower` and `upper` are None where the value is exact; `drift` is the certified value less the speed layer's, None
    where there are not both. `final_ratio` is how much of the window has its numbers from certified days; `length_ms`
    that of a session from its first event to its last, None of other windows.
    """

    window_start: datetime
    window_end: datetime
    dimensions: Mapping[str, str]
    value: Value
    lower: Number | None
    upper: Number | None
    layer: str
    is_final: bool
    drift: float | None
    status: str
    final_ratio: float = 0.0
    length_ms: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as the command line and the API print it: ISO times with Z, decimals as strings."""
        return {
            "window_start": iso(self.window_start),
            "window_end": iso(self.window_end),
            "dimensions": dict(self.dimensions),
            "value": _plain(self.value),
            "lower": _plain(self.lower),
            "upper": _plain(self.upper),
            "layer": self.layer,
            "is_final": self.is_final,
            "drift": self.drift,
            "status": self.status,
            "final_ratio": self.final_ratio,
            **({} if self.length_ms is None else {"length_ms": self.length_ms}),
        }


def build(  # noqa: PLR0913, PLR0917 - a text for each part of a question
    catalog: Catalog,
    metric: str,
    grain: str | None = None,
    start: str | None = None,
    end: str | None = None,
    by: Sequence[str] = (),
    layer: str | None = None,
    limit: int = DEFAULT_LIMIT,
    version: str | None = None,
    as_of: str | None = None,
) -> Query:
    """A query from texts, as a user writes them.

    Args:
        catalog: where the metric is defined.
        metric: its name.
        grain: such as ``1m``; None for the first in the catalog.
        start: ISO time or day; None for the first window.
        end: ISO time or day, exclusive; None for the last window.
        by: ``DIMENSION=VALUE`` filters; several values of one dimension are alternatives.
        layer: served, speed or batch; None for served, and of what was published at some time for batch.
        limit: most rows.
        version: a metric version; None for the one that the metric's name shows.
        as_of: ISO time; None for what is shown now.

    Raises:
        UnknownMetricError: the catalog has no such metric.
        QueryError: another part is wrong.
    """
    try:
        found = catalog.metric(metric)
    except KeyError as error:
        raise UnknownMetricError(error.args[0]) from error
    return Query(
        found,
        grain or found.grains[0],
        None if start is None else parse_time(start, "from"),
        None if end is None else parse_time(end, "to"),
        _filters(by),
        layer or ("batch" if as_of else "served"),
        limit,
        version,
        None if as_of is None else parse_time(as_of, "as_of"),
    )


def rows(client: Client, database: str, query: Query) -> list[Row]:
    """The rows of a query in order of window and dimensions; of more than its limit, the latest.

    Raises:
        QueryError: What was published then is kept no longer.
    """
    if query.as_of is not None:
        _refuse_dropped(client, _days(database, query))
    sql, parameters = select(database, query)
    result = client.query(sql, parameters=parameters)
    named = dimensions(query.metric)
    found = []
    for start, end, *rest in reversed(result.result_rows):
        values = dict(zip(named, rest[: len(named)], strict=True))
        value, lower, upper, layer, is_final, drift, status, final_ratio, *length = rest[len(named) :]
        certainty = (layer, bool(is_final), drift, status, final_ratio)
        found.append(Row(start, end, values, _value(value), lower, upper, *certainty, *length))
    return found


def select(database: str, query: Query) -> tuple[str, dict[str, Any]]:
    """The SELECT of a query, latest rows first, and its bound parameters."""
    named = [quote(name) for name in dimensions(query.metric)]
    view = view_name(query.metric, query.grain, query.version) + SUFFIXES[query.layer]
    relation = f"{quote(database)}.{quote(view)}"
    if query.as_of is not None:
        relation = f"(\n{batch_sql(query.metric, query.grain, _days(database, query))}\n)"
    conditions = []
    parameters: dict[str, Any] = {"most": query.limit}
    for name, moment, comparison in (("start", query.start, ">="), ("end", query.end, "<")):
        if moment is not None:
            conditions.append(f"window_start {comparison} fromUnixTimestamp64Milli({{{name}:Int64}}, 'UTC')")
            parameters[name] = round(moment.timestamp() * 1000)
    for index, (name, values) in enumerate(query.by.items()):
        conditions.append(f"{quote(name)} IN {{by_{index}:Array(String)}}")
        parameters[f"by_{index}"] = list(values)
    columns = [
        "window_start",
        "window_end",
        *named,
        "value",
        "lower",
        "upper",
        "layer",
        "is_final",
        "drift",
        "status",
        "final_ratio",
        *(["length_ms"] if query.metric.session else []),
    ]
    where = f"\nWHERE {' AND '.join(conditions)}" if conditions else ""
    order = ", ".join(f"{name} DESC" for name in ("window_start", *named))
    return (
        f"SELECT {', '.join(columns)}\nFROM {relation}{where}\nORDER BY {order}\nLIMIT {{most:UInt64}}",
        parameters,
    )


def _days(database: str, query: Query) -> Days:
    return Days(database, query.metric.versions, query.as_of)


def _refuse_dropped(client: Client, days: Days) -> None:
    if gone := sorted({str(day) for day, _ in client.query(days.dropped).result_rows}):
        listed = ", ".join(gone[:_DAYS_LISTED]) + (", ..." if len(gone) > _DAYS_LISTED else "")
        msg = (
            f"what was published then of {listed} has been dropped, as another run took its place long ago. ask for a "
            "later time; LOCKSTEP_RUNS_KEPT_DAYS says how long such runs are kept"
        )
        raise QueryError(msg)


def answer(client: Client, database: str, query: Query) -> dict[str, Any]:
    """The JSON object of a query: `{"metric", "grain", "rows": [...]}`."""
    return {
        "metric": query.metric.name,
        "grain": query.grain,
        "rows": [row.as_json() for row in rows(client, database, query)],
    }


def parse_time(text: str, name: str) -> datetime:
    """An aware UTC time from ``2026-11-18``, ``2026-11-18T10:00Z`` or with an offset; without a zone it is UTC.

    Raises:
        QueryError: the text is no such time.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        msg = f"`{name}` must be an ISO 8601 time or day; got `{text}`. write for example 2026-11-18T10:00:00Z"
        raise QueryError(msg) from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def iso(moment: datetime | date) -> str:
    """ISO 8601 in UTC with Z; milliseconds only where there are any. A day is a day."""
    if not isinstance(moment, datetime):
        return moment.isoformat()
    moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


def _filters(texts: Sequence[str]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.strip():
            msg = f"`by` must be DIMENSION=VALUE; got `{text}`. write for example country=DE"
            raise QueryError(msg)
        filters.setdefault(name.strip(), []).append(value)
    return filters


def _value(value: Any) -> Value:  # noqa: ANN401 - what the driver makes of a column
    if isinstance(value, list | tuple):
        pairs = [tuple(entry.values()) if isinstance(entry, dict) else entry for entry in value]
        return [{"item": item, "count": count} for item, count in pairs]
    found: Value = value
    return found


def _plain(value: Value) -> int | float | str | list[Item] | None:
    if isinstance(value, Decimal):
        return str(value)
    # JSON has neither infinities nor NaN, which a float sum may reach
    return None if isinstance(value, float) and not math.isfinite(value) else value
