"""Slices, or sessions, of the speed layer against the expected ones, paired by what names them and compared by state.

Exact columns are compared by a digest. A column whose sum depends on the order of its terms may differ by what the
catalog's state says (`StateColumn.tolerance`), computed from the expected side.
"""

from infra.clickhouse import quote
from metrics.catalog import Metric
from metrics.state import StateColumn
from metrics.window import milliseconds
from reconciliation import rows_sql

SHOWN_STATE = 200
"""Characters of a state that are shown."""


def slice_totals(metric: Metric, database: str) -> str:
    """One row: slices compared, equal, and how the differing ones divide."""
    return (
        f"SELECT '{metric.name}' AS metric, count() AS compared, countIf(same) AS equal,"
        " countIf(NOT same AND NOT closed) AS not_yet_closed, countIf(NOT same AND closed) AS residual,"
        " countIf(in_expected = 0) AS only_speed, countIf(in_speed = 0) AS only_expected\n"
        f"FROM (\n{_paired(metric, database)}\n)"
    )


def differing_slices(metric: Metric, database: str, limit: int) -> str:
    """The first differing slices, closed ones, which are the defects, before open ones.

    Columns: `slice_start` and `slice_end`, what names the row as `d0..`, `closed`, `in_speed`, `in_expected`,
    `speed_events`, `expected_events`, of sessions `speed_length` and `expected_length`, and per state column
    `speed_s0..` and `expected_s0..` as text.
    """
    order = ", ".join(["closed DESC", "slice_start", *_named(metric)])
    return f"SELECT *\nFROM (\n{_paired(metric, database)}\n)\nWHERE NOT same\nORDER BY {order}\nLIMIT {limit}"


def _paired(metric: Metric, database: str) -> str:
    """One row per slice that either side has. A key that one side has twice differs, whatever it holds.

    Maps are sorted first, so that the order in which a writer filled them says nothing. Of sessions the end and the
    length are part of the digest.
    """
    sides = {
        "speed": rows_sql.speed(metric, database, _columns(metric, expected=False)),
        "expected": rows_sql.expected(metric, database, _columns(metric, expected=True)),
    }
    union = "\nUNION ALL\n".join(f"SELECT '{side}' AS side, * FROM ({rows})" for side, rows in sides.items())
    loose = [index for index, column in enumerate(metric.agg.state) if column.tolerance is not None]
    same = ["in_speed = 1", "in_expected = 1", "min(u.digest) = max(u.digest)", *(within(index) for index in loose)]
    shown = {"events": "events", **({"length": "length_ms"} if metric.session else {})}
    shown |= {f"s{index}": f"s{index}" for index in range(len(metric.agg.state))}
    paired = [
        "u.slice_start AS slice_start",
        "max(u.slice_end) AS slice_end",
        *(f"u.{name} AS {name}" for name in _named(metric)),
        *(f"countIf(u.side = '{side}') AS in_{side}" for side in sides),
        f"{' AND '.join(same)} AS same",
        "toUnixTimestamp64Milli(max(u.slice_end)) <= {open_from:Int64} AS closed",
        *(f"anyIf(u.{name}, u.side = '{side}') AS {side}_{alias}" for side in sides for alias, name in shown.items()),
    ]
    group = ", ".join(["u.slice_start", *(f"u.{name}" for name in _named(metric))])
    return f"SELECT {', '.join(paired)}\nFROM (\n{union}\n) AS u\nGROUP BY {group}"


def _columns(metric: Metric, *, expected: bool) -> list[str]:
    state = metric.agg.state
    exact = [_hashed(column) for column in state if column.tolerance is None]
    span = ["r.window_end", "r.length_ms"] if metric.session else []
    columns = [*_span(metric), *(f"r.{quote(name)} AS d{index}" for index, name in enumerate(rows_sql.names(metric)))]
    if metric.session:
        columns.append("r.length_ms AS length_ms")
    columns.append("r.events AS events")
    columns.append(f"sipHash128({', '.join(['r.events', *span, *exact])}) AS digest")
    for index, column in enumerate(state):
        columns.append(f"{_shown(column)} AS s{index}")
        if column.tolerance is not None:
            columns.append(f"r.{quote(column.name)} AS f{index}")
            columns.append(f"{column.tolerance if expected else '0.0'} AS t{index}")
    return columns


def _span(metric: Metric) -> list[str]:
    if metric.session:
        return ["r.window_start AS slice_start", "r.window_end AS slice_end"]
    width = milliseconds(metric.slice_width)
    return ["r.slice_start AS slice_start", f"r.slice_start + toIntervalMillisecond({width}) AS slice_end"]


def within(index: int) -> str:
    """Whether the two sides of a column of floats lie as near as its tolerance says.

    Where a sum has overflowed there is no such tolerance, and they must be equal; infinities and NaN are to themselves.
    """
    speed, expected = (f"anyIf(u.f{index}, u.side = '{side}')" for side in ("speed", "expected"))
    tolerance = f"anyIf(u.t{index}, u.side = 'expected')"
    same = f"{speed} = {expected} OR isNaN({speed}) AND isNaN({expected})"
    return f"({same} OR isFinite({tolerance}) AND abs({speed} - {expected}) <= {tolerance})"


def _canonical(column: StateColumn) -> str:
    name = f"r.{quote(column.name)}"
    return f"mapSort({name})" if column.is_map else name


def _shown(column: StateColumn) -> str:
    """A text for a person: of a map its size first, since its end may be cut off."""
    name = _canonical(column)
    text = f"concat(toString(length({name})), ' entries ', toString({name}))" if column.is_map else f"toString({name})"
    return f"ifNull(substring({text}, 1, {SHOWN_STATE}), 'NULL')"


def _hashed(column: StateColumn) -> str:
    """What a digest is made of; the digest of a NULL would be NULL."""
    name = _canonical(column)
    if not column.clickhouse_type.startswith("Nullable("):
        return name
    return f"isNull({name}), ifNull(toString({name}), '')"


def _named(metric: Metric) -> list[str]:
    return [f"d{index}" for index in range(len(rows_sql.names(metric)))]
