"""The SQL that merges rows of states, or of distinct values, into windows and presents them.

Every number is computed here, for the views and in reconciliation alike, so that no two can differ by their SQL.
"""

import re
from collections.abc import Iterable

from infra.clickhouse import quote
from metrics.catalog import Metric, ShownMetric
from metrics.fold import SESSION_KEY
from metrics.window import GlobalWindow, SessionWindow
from serving import window_sql

_COMPOSES = re.compile(r"(min|max|sum|any)\(.*\)", re.DOTALL)


def dimensions(metric: ShownMetric) -> tuple[str, ...]:
    """What names a window besides its time: the dimensions, after the key of a session. Not quoted."""
    return (SESSION_KEY, *metric.by) if metric.session else metric.by


def keys(metric: ShownMetric) -> list[str]:
    """The columns of a view up to its value, quoted: the window, the dimensions and the length of a session."""
    length = ["length_ms"] if metric.session else []
    return ["window_start", "window_end", *map(quote, dimensions(metric)), *length]


def presented(
    metric: Metric, grain: str, relation_sql: str, also: Iterable[str] = (), apart: Iterable[str] = ()
) -> str:
    """SELECT that merges a metric's slices into windows and presents their states.

    Args:
        metric: the metric whose states the relation holds.
        grain: one of the metric's grains.
        relation_sql: a table, or a SELECT in parentheses, with one row per (slice_start, dimensions) of a single metric
            version: `slice_start`, the dimensions, `events` and the state columns. Of sessions one row per session,
            with `window_start`, `window_end`, `session_key` and `length_ms` instead of `slice_start`. A replacing table
            needs `FINAL`.
        also: further aggregate expressions over the relation `s`, each with an alias, carried to the result.
        apart: further columns of the relation by whose values windows are kept apart; they are carried too.

    Returns:
        SQL with one row per (window_start, dimensions): `window_start, window_end, <dimensions>, [length_ms], events,
        value, lower, upper` and the aliases of `also`. Ends are exclusive; bounds of an exact aggregation are NULL.
    """
    also, apart = list(also), list(apart)
    windows = _Windows(metric, grain, apart)
    merged = [
        *windows.inner,
        "sum(s.events) AS events",
        *(f"{column.merge_sql} AS {quote(column.name)}" for column in metric.agg.state),
        *also,
    ]
    shown_as = metric.agg.present_sql()
    return (
        f"SELECT {', '.join(windows.outer('w', metric, (shown_as.value, shown_as.lower, shown_as.upper), also))}\n"
        f"FROM (\n  SELECT {', '.join(merged)}\n  FROM {relation_sql} AS s{windows.join}\n"
        f"  GROUP BY {', '.join(windows.group)}\n) AS w"
    )


def presented_items(metric: Metric, grain: str, relation_sql: str, also: Iterable[str] = ()) -> str:
    """SELECT that merges distinct values with their counts into windows and presents them exactly.

    Args:
        metric: a metric whose aggregation is `by_value`.
        grain: one of the metric's grains.
        relation_sql: as for `presented`, with the columns `item` and `n` instead of `events` and the states, and any
            number of rows per (slice_start, dimensions, item).
        also: further expressions over the relation `s`, each one of min, max, sum, any and with an alias.

    Returns:
        SQL with the columns of `presented`; `events` is the sum of `n`, and the bounds are NULL.
    """
    also = list(also)
    windows = _Windows(metric, grain, [])
    counted = [*windows.inner, "s.item AS item", "sum(s.n) AS n", *also]
    again = [f"{_composing(expression)}(i.{_alias(expression)}) AS {_alias(expression)}" for expression in also]
    items = [
        *(f"i.{name} AS {name}" for name in windows.keys),
        *windows.latest_again,
        # not `events` or `n` yet: an alias would stand for the column of that name in `items_sql`
        "sum(i.n) AS _events",
        f"{metric.agg.items_sql()} AS _items",
        *again,
    ]
    shown = windows.outer("w", metric, ("w._items", "NULL", "NULL"), also)
    shown = [text.replace("w.events AS events", "w._events AS events") for text in shown]
    return (
        f"SELECT {', '.join(shown)}\nFROM (\nSELECT {', '.join(items)}\nFROM (\n"
        f"  SELECT {', '.join(counted)}\n  FROM {relation_sql} AS s{windows.join}\n"
        f"  GROUP BY {', '.join([*windows.group, 's.item'])}\n) AS i\n"
        f"GROUP BY {', '.join(f'i.{name}' for name in windows.keys)}\n) AS w"
    )


class _Windows:
    """How rows of a relation `s` are grouped into windows.

    Attributes:
        keys: names of the grouping columns, quoted.
        inner: what the grouping SELECT has of them.
        group: what it groups by.
        join: what joins the several windows of a slice.
        latest_again: the start of the last slice, carried through a second grouping; only where it is needed.
    """

    def __init__(self, metric: Metric, grain: str, apart: list[str]) -> None:
        self.window = metric.window(grain)
        self.join = ""
        self.latest_again: list[str] = []
        named = [quote(name) for name in dimensions(metric)]
        self._apart = apart
        if isinstance(self.window, SessionWindow):
            self.keys = ["window_start", "window_end", *named, "length_ms", *apart]
            self.inner = [f"s.{name} AS {name}" for name in self.keys]
            self.group = [f"s.{name}" for name in self.keys]
            return
        self.keys = ["window_start", *named, *apart]
        found = window_sql.starts(self.window, "s.slice_start")
        start = "_start" if found.many else found.expression
        self.join = f"\n  ARRAY JOIN {found.expression} AS _start" if found.many else ""
        self.inner = [f"{start} AS window_start", *(f"s.{name} AS {name}" for name in self.keys[1:])]
        self.group = [start, *(f"s.{name}" for name in self.keys[1:])]
        if self._is_global:
            self.inner.append("max(s.slice_start) AS _last_slice")
            self.latest_again = ["max(i._last_slice) AS _last_slice"]

    @property
    def _is_global(self) -> bool:
        return isinstance(self.window, GlobalWindow)

    def outer(self, relation: str, metric: Metric, value: tuple[str, str, str], also: list[str]) -> list[str]:
        """What the presenting SELECT has, over the grouped rows of `relation`."""
        if isinstance(self.window, SessionWindow):
            window_end = f"{relation}.window_end"
        else:
            over = f"PARTITION BY {', '.join(f'{relation}.{name}' for name in self._apart)}" if self._apart else ""
            last = f"max({relation}._last_slice) OVER ({over})" if self._is_global else ""
            window_end = window_sql.end(self.window, f"{relation}.window_start", last)
        exact, lower, upper = value
        return [
            f"{relation}.window_start AS window_start",
            f"{window_end} AS window_end",
            *(f"{relation}.{name} AS {name}" for name in keys(metric)[2:]),
            f"{relation}.events AS events",
            f"CAST({exact} AS {metric.agg.shown_type}) AS value",
            f"CAST({lower} AS {metric.agg.bound_type}) AS lower",
            f"CAST({upper} AS {metric.agg.bound_type}) AS upper",
            *(f"{relation}.{name} AS {name}" for name in (*map(_alias, also), *self._apart)),
        ]


def _alias(expression: str) -> str:
    return expression.rsplit(" AS ", 1)[1]


def _composing(expression: str) -> str:
    match = _COMPOSES.match(expression)
    if match is None:
        msg = f"`also` takes min, max, sum or any of an expression; got `{expression}`"
        raise ValueError(msg)
    return match[1]
