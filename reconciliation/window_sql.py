"""Windows with their five readings, made from the rows of one day.

A window that reaches into other days is read as that day's share of it: the day's slices are merged into windows, in
each reading alike. So every difference of a day is shown in that day, and the readings telescope. A session is whole,
and belongs to the day of its last instant.

A reading is a number. Of `top`, and of a `last` that is no number, a window is taken apart by item: the reading is the
item's count in the list, or 1 for the value that was last. NULL, and a row that is absent, read as 0.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from infra.clickhouse import quote
from metrics.catalog import Metric, RatioMetric, ShownMetric
from metrics.totals import FLOAT_TOLERANCE
from metrics.window import SlidingWindow
from reconciliation import rows_sql
from reconciliation.rows_sql import READERS
from serving.presented import presented, presented_items
from serving.readings import each

LARGEST_FLOAT = "1e300"
"""Floats beyond it, and what is no number, read as 0: a sum of them would be no number."""

_ZERO_WITHOUT_EVENTS = ("count", "sum", "distinct")
_NO_ITEM = "CAST(NULL AS Nullable(String))"


def by_item(metric: ShownMetric) -> bool:
    """Whether its windows are taken apart by item, because their values are no numbers."""
    return metric.value_type.startswith("Array(") or metric.value_type in {"String", "Bool"}


def summary(metric: ShownMetric, database: str, bin_ms: Sequence[int], worst: int, *, joined: bool = False) -> str:
    """Windows of all grains added up over bins, open and closed ones apart, with the worst windows of each bin.

    Columns: `grain`, its place among the metric's; `bin` (ms), `is_closed`, `windows`; `differing`, windows in which
    any two readings differ, and `changed`, windows in which each reading differs from the next; `lagging`, those in
    which expected differs from counted because versions of lookups came late; `bounded`, `covered`; `sums`, the five
    readings and how much of the difference is such, as text, so that no digit is lost; `worst`, tuples as `_worst` has
    them.

    Args:
        metric: what is read.
        database: of its source.
        bin_ms: the width of a bin, for each grain.
        worst: how many windows are kept of each bin.
        joined: whether the metric is computed from fields of lookups.
    """
    lagged = _lagged(metric) if joined else "toInt8(0)"
    return "\nUNION ALL\n".join(
        _bins(metric, index, database, width, worst, lagged) for index, width in enumerate(bin_ms)
    )


def _lagged(metric: ShownMetric) -> str:
    """How much of counted minus expected is because versions came late: all but what an estimate's bounds allow."""
    step = "w.counted - w.expected"
    if metric.exact:
        return f"({step})"
    within = "ifNull(w.counted BETWEEN w.lower_bound AND w.upper_bound, true)"
    return f"if({within}, w.counted - w.counted, {step})"


def _bins(  # noqa: PLR0913, PLR0917 - what a bin is made of
    metric: ShownMetric, grain: int, database: str, width: int, worst: int, lagged: str
) -> str:
    steps = [f"w.{left} != w.{right}" for left, right in pairwise(READERS)]
    start = "toUnixTimestamp64Milli(w.window_start)"
    if not isinstance(metric.windows[grain], SlidingWindow):
        start = f"greatest({start}, {{start:Int64}})"
    key = ", ".join(["w.window_start", *(f"w.{name}" for name in _named(metric))])

    def counted(condition: str) -> str:
        return f"uniqExactIf(({key}), {condition})" if by_item(metric) else f"countIf({condition})"

    shown = [
        f"{grain} AS grain",
        f"intDiv({start}, {width}) * {width} AS bin",
        "w.closed AS is_closed",
        f"{counted('true')} AS windows",
        f"{counted(' OR '.join(steps))} AS differing",
        f"[{', '.join(map(counted, steps))}] AS changed",
        f"{counted(f'{lagged} != 0')} AS lagging",
        "countIf(isNotNull(w.lower_bound)) AS bounded",
        "countIf(w.counted BETWEEN w.lower_bound AND w.upper_bound) AS covered",
        f"[{', '.join(f'toString(sum({one}))' for one in (*(f'w.{reader}' for reader in READERS), lagged))}] AS sums",
        f"groupArraySortedIf({worst})({_worst(metric, lagged)}, {' OR '.join(steps)}) AS worst",
    ]
    windows = _windows(metric, metric.grains[grain], database)
    return f"SELECT {', '.join(shown)}\nFROM (\n{windows}\n) AS w\nGROUP BY bin, is_closed"


def _worst(metric: ShownMetric, lagged: str) -> str:
    """A window as a tuple, in which those sort first whose consecutive readings lie furthest apart.

    Elements: minus that distance, parts of unlike sign not cancelling; start and end in ms; what names it; the item;
    the readings, and what is lagged of them, as text; whether each reader has a value; the bounds as text; the length
    in ms.
    """
    distance = " + ".join(f"abs(toFloat64(w.{left}) - toFloat64(w.{right}))" for left, right in pairwise(READERS))
    elements = [
        f"-({distance})",
        "toUnixTimestamp64Milli(w.window_start)",
        "toUnixTimestamp64Milli(w.window_end)",
        f"CAST([{', '.join(f'w.{name}' for name in _named(metric))}] AS Array(String))",
        "ifNull(w.item, '')",
        f"[{', '.join(f'toString({one})' for one in (*(f'w.{reader}' for reader in READERS), lagged))}]",
        f"[{', '.join(f'w.has_{reader}' for reader in READERS)}]",
        "[ifNull(toString(w.lower_bound), ''), ifNull(toString(w.upper_bound), '')]",
        "w.length_ms",
    ]
    return f"tuple({', '.join(elements)})"


def _windows(metric: ShownMetric, grain: str, database: str) -> str:
    """One row per window, and item, that any reader has: its five readings, and which readers have a value."""
    if isinstance(metric, RatioMetric):
        return _ratios(metric, grain, database)
    rows = "\nUNION ALL\n".join(
        f"SELECT {', '.join(_read(metric))}\nFROM (\n{relation}\n) AS p"
        for relation in _relations(metric, grain, database)
    )
    inner = [
        "r.window_start AS window_start",
        "max(r.window_end) AS window_end",
        *(f"r.{name} AS {name}" for name in _named(metric)),
        "r.item AS item",
        *(f"sumIf(r.amount, r.reading = '{reader}') AS read_{reader}" for reader in READERS),
        *(f"maxIf(r.has_value, r.reading = '{reader}') AS has_{reader}" for reader in READERS),
        "maxIf(r.lower_bound, r.reading = 'expected') AS lower_bound",
        "maxIf(r.upper_bound, r.reading = 'expected') AS upper_bound",
        "max(r.length_ms) AS length_ms",
        # an infinite tolerance, of terms whose sum has overflowed, would make all readings alike
        f"{FLOAT_TOLERANCE} * maxIf(r.magnitude, isFinite(r.magnitude)) AS tolerance",
    ]
    group = ", ".join(["r.window_start", *(f"r.{name}" for name in _named(metric)), "r.item"])
    ends = "v.window_end" if metric.session else "least(v.window_end, fromUnixTimestamp64Milli({end:Int64}, 'UTC'))"
    shown = [
        "v.window_start AS window_start",
        "v.window_end AS window_end",
        *(f"v.{name} AS {name}" for name in _named(metric)),
        "v.item AS item",
        f"toUnixTimestamp64Milli({ends}) <= {{open_from:Int64}} AS closed",
        *_snapped(metric),
        *(f"v.has_{reader} AS has_{reader}" for reader in READERS),
        "v.lower_bound AS lower_bound",
        "v.upper_bound AS upper_bound",
        "v.length_ms AS length_ms",
    ]
    return (
        f"SELECT {', '.join(shown)}\nFROM (\nSELECT {', '.join(inner)}\nFROM (\n{rows}\n) AS r\n"
        f"GROUP BY {group}\n) AS v"
    )


def _snapped(metric: Metric) -> list[str]:
    """The readings; what lies as near to the next as rounding may bring it is taken as equal, from exact backwards."""
    if not _rounded(metric):
        return [f"v.read_{reader} AS {reader}" for reader in READERS]
    columns = [f"v.read_{READERS[-1]} AS {READERS[-1]}"]
    for reader, after in reversed(list(pairwise(READERS))):
        near = f"abs(v.read_{reader} - {after}) <= greatest(v.tolerance, {FLOAT_TOLERANCE} * abs({after}))"
        columns.append(f"if({near}, {after}, v.read_{reader}) AS {reader}")
    return columns


def _rounded(metric: Metric) -> bool:
    return any(column.tolerance for column in metric.agg.state)


def _relations(metric: Metric, grain: str, database: str) -> list[str]:
    """The presented windows of all readings: `reading` is one more dimension, so the same SQL merges each."""
    apart = replace(metric, by=("reading", *metric.by))
    place = [f"r.{quote(name)} AS {quote(name)}" for name in (*rows_sql.place(metric), *metric.by)]
    states = [*place, *(f"r.{quote(name)} AS {quote(name)}" for name in rows_sql.states(metric))]
    speed = rows_sql.speed(metric, database, ["'speed' AS reading", *states])
    expected = rows_sql.expected(metric, database, ["'expected' AS reading", *states])
    reading = f"{each('r.reading')} AS reading"
    if metric.agg.by_value:
        items = rows_sql.batch(metric, database, [reading, *place, "r.item AS item", "r.n AS n"])
        return [
            presented(apart, grain, f"({speed}\nUNION ALL\n{expected})"),
            presented_items(apart, grain, f"({items})"),
        ]
    batch = rows_sql.batch(metric, database, [reading, *states])
    relation = f"({speed}\nUNION ALL\n{expected}\nUNION ALL\n{batch})"
    return [presented(apart, grain, relation, also=_magnitude(metric))]


def _magnitude(metric: Metric) -> tuple[str, ...]:
    """What rounding is judged against: where terms cancel it is much larger than the value."""
    columns = {column.name for column in metric.agg.state}
    if not _rounded(metric):
        return ()
    if "magnitude" in columns:
        share = "sum(s.magnitude)" if "number" not in columns else "sum(s.magnitude) / greatest(1, sum(s.number))"
        return (f"{share} AS size_of_terms",)
    return ("max(abs(s.mean)) AS size_of_terms",)


def _read(metric: Metric) -> list[str]:
    """The columns of a presented window as a reading; by item, a row for each."""
    has_value = "isNotNull(p.value)"
    item, amount = _NO_ITEM, _number(metric)
    if by_item(metric):
        listed = metric.value_type.startswith("Array(")
        pair = "(CAST({} AS Nullable(String)), toInt128({}))"
        pairs = (
            f"if(empty(p.value), [{pair.format('NULL', 0)}], arrayMap(x -> {pair.format('x.1', 'x.2')}, p.value))"
            if listed
            else f"[{pair.format('p.value', has_value)}]"
        )
        item, amount = f"tupleElement(arrayJoin({pairs}) AS pair, 1)", "tupleElement(pair, 2)"
        has_value = "true"
    low, high = ("p.lower", "p.upper") if not metric.exact else (_no_bound(metric), _no_bound(metric))
    return [
        "p.reading AS reading",
        "p.window_start AS window_start",
        "p.window_end AS window_end",
        *(f"p.{quote(name)} AS d{index}" for index, name in enumerate(rows_sql.names(metric))),
        f"{item} AS item",
        f"{amount} AS amount",
        f"{has_value} AS has_value",
        f"{low} AS lower_bound",
        f"{high} AS upper_bound",
        f"{'toInt64(p.length_ms)' if metric.session else 'toInt64(0)'} AS length_ms",
        f"{'p.size_of_terms' if _rounded(metric) else '0.0'} AS magnitude",
    ]


def _number(metric: Metric) -> str:
    """The value as a number that can be added up: integers wide enough, floats that are finite."""
    value = "ifNull(p.value, 0)" if metric.agg.nullable else "p.value"
    if metric.value_type == "Float64":
        return f"if(abs({value}) <= {LARGEST_FLOAT}, {value}, 0.0)"
    return f"CAST({value} AS {_number_type(metric)})"


def _number_type(metric: ShownMetric) -> str:
    if metric.value_type == "Float64" or metric.value_type.startswith("Decimal("):
        return metric.value_type
    return "Int128"


def _no_bound(metric: ShownMetric) -> str:
    return f"CAST(NULL AS Nullable({_number_type(metric)}))"


def _ratios(metric: RatioMetric, grain: str, database: str) -> str:
    """One row per window of either operand; where the denominator reads 0 there is no value."""
    columns = ["window_start", "window_end", *_named(metric), "closed"]
    operands = []
    for index, operand in enumerate(metric.operands):
        values = [
            f"{f'toFloat64(o.{reader})' if index == part else '0.0'} AS {name}_{reader}"
            for part, name in enumerate(("n", "d"))
            for reader in READERS
        ]
        values += [f"{f'o.has_{reader}' if index == 0 else 'false'} AS has_{reader}" for reader in READERS]
        carried = ", ".join([*(f"o.{name} AS {name}" for name in columns), *values])
        operands.append(f"SELECT {carried}\nFROM (\n{_windows(operand, grain, database)}\n) AS o")
    union = "\nUNION ALL\n".join(operands)
    shown = [
        "u.window_start AS window_start",
        "max(u.window_end) AS window_end",
        *(f"u.{name} AS {name}" for name in _named(metric)),
        f"{_NO_ITEM} AS item",
        "min(u.closed) AS closed",
        *(f"if(sum(u.d_{reader}) = 0, 0.0, sum(u.n_{reader}) / sum(u.d_{reader})) AS {reader}" for reader in READERS),
        *(f"sum(u.d_{reader}) != 0 AND {_has(metric, reader)} AS has_{reader}" for reader in READERS),
        f"{_no_bound(metric)} AS lower_bound",
        f"{_no_bound(metric)} AS upper_bound",
        "toInt64(0) AS length_ms",
    ]
    group = ", ".join(["u.window_start", *(f"u.{name}" for name in _named(metric))])
    return f"SELECT {', '.join(shown)}\nFROM (\n{union}\n) AS u\nGROUP BY {group}"


def _has(metric: RatioMetric, reader: str) -> str:
    """Whether the numerator has a value: where it has no events a count is 0, and a mean is nothing."""
    return "true" if metric.numerator.agg.name in _ZERO_WITHOUT_EVENTS else f"max(u.has_{reader})"


def _named(metric: ShownMetric) -> list[str]:
    """The columns that name a window besides its start: of sessions the key, then the dimensions."""
    return [f"d{index}" for index in range(len(metric.by) + bool(metric.session))]
