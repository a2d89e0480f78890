"""The SELECTs of the comparison, one builder per statement. Values are bound: see `diff.Scope.parameters`.

Bound names: `version` and `run_id` (String), `day` (String, ISO date), `start`, `end` and `open_from` (Int64,
milliseconds since the epoch).
"""

from infra.clickhouse import quote
from metrics.catalog import Metric
from metrics.window import milliseconds
from serving.views import presented

READERS = ("speed", "expected", "counted", "with_late", "exact")
"""The five readings of a window, in the order in which they are explained."""


def slice_totals(metric: Metric, database: str) -> str:
    """One row: slices compared, equal, and how the differing ones divide."""
    return (
        "SELECT count() AS compared, countIf(same) AS equal, countIf(NOT same AND NOT closed) AS not_yet_closed,"
        " countIf(NOT same AND closed) AS residual, countIf(in_expected = 0) AS only_speed,"
        f" countIf(in_speed = 0) AS only_expected\nFROM (\n{_paired_slices(metric, database)}\n)"
    )


def differing_slices(metric: Metric, database: str, limit: int) -> str:
    """The first differing slices, closed ones, which are the defects, before open ones.

    Columns: `slice_start`, the dimensions as `d0..`, `closed`, `in_speed`, `in_expected`, `speed_events`,
    `expected_events`, and per state column `speed_s0..` and `expected_s0..` as text.
    """
    order = ", ".join(["closed DESC", "slice_start", *_dimension_names(metric)])
    return f"SELECT *\nFROM (\n{_paired_slices(metric, database)}\n)\nWHERE NOT same\nORDER BY {order}\nLIMIT {limit}"


def bins(metric: Metric, grain: str, database: str, bin_ms: int) -> str:
    """Windows added up over bins of `bin_ms`, open and closed ones apart. Sums are text, so that no digit is lost."""
    apart = " OR ".join(f"w.{left} != w.{right}" for left, right in zip(READERS, READERS[1:], strict=False))
    shown = [
        f"intDiv(toUnixTimestamp64Milli(w.window_start), {bin_ms}) * {bin_ms} AS bin",
        "w.closed AS is_closed",
        "count() AS windows",
        f"countIf({apart}) AS differing",
        "countIf(w.expected != w.counted) AS sketched",
        "countIf(isNotNull(w.lower_bound)) AS bounded",
        "countIf(w.counted BETWEEN w.lower_bound AND w.upper_bound) AS covered",
        *(f"toString(sum(w.{reader})) AS {reader}_sum" for reader in READERS),
    ]
    return (
        f"SELECT {', '.join(shown)}\nFROM (\n{_windows(metric, grain, database)}\n) AS w\n"
        "GROUP BY bin, is_closed\nORDER BY bin, is_closed DESC"
    )


def worst_windows(metric: Metric, grain: str, database: str, limit: int) -> str:
    """The windows in which consecutive readings lie furthest apart, parts of unlike sign not cancelling."""
    distance = " + ".join(
        f"abs(toFloat64(w.{left}) - toFloat64(w.{right}))" for left, right in zip(READERS, READERS[1:], strict=False)
    )
    shown = [
        "w.window_start AS window_start",
        "w.window_end AS window_end",
        *(f"w.{name} AS {name}" for name in _dimension_names(metric)),
        "w.closed AS is_closed",
        *(f"toString(w.{reader}) AS {reader}_text" for reader in READERS),
        "toInt64(w.lower_bound) AS lower_bound",
        "toInt64(w.upper_bound) AS upper_bound",
        f"{distance} AS distance",
    ]
    order = ", ".join(["distance DESC", "window_start", *_dimension_names(metric)])
    return (
        f"SELECT {', '.join(shown)}\nFROM (\n{_windows(metric, grain, database)}\n) AS w\n"
        f"WHERE distance > 0\nORDER BY {order}\nLIMIT {limit}"
    )


def _paired_slices(metric: Metric, database: str) -> str:
    """Slices of both sides by key, compared by a 128-bit digest of the events and the whole state.

    Maps are sorted first, so that the order in which a writer filled them says nothing. A key that one side has twice
    differs, whatever it holds.
    """
    states = [column.name for column in metric.agg.state]
    kinds = [column.clickhouse_type for column in metric.agg.state]
    canonical = [
        f"mapSort({quote(name)})" if kind.startswith("Map(") else quote(name)
        for name, kind in zip(states, kinds, strict=True)
    ]
    columns = [
        "slice_start",
        *(f"{quote(name)} AS d{index}" for index, name in enumerate(metric.by)),
        "events",
        f"sipHash128(events, {', '.join(canonical)}) AS digest",
        *(f"substring(toString({state}), 1, 200) AS s{index}" for index, state in enumerate(canonical)),
    ]
    dimensions = _dimension_names(metric)
    sides = (("speed", _speed(metric, database, columns)), ("expected", _expected(metric, database, columns)))
    union = "\nUNION ALL\n".join(f"SELECT '{side}' AS side, * FROM {relation}" for side, relation in sides)
    width_ms = milliseconds(metric.slice_width)
    paired = [
        "slice_start",
        *dimensions,
        "countIf(side = 'speed') AS in_speed",
        "countIf(side = 'expected') AS in_expected",
        "in_speed = 1 AND in_expected = 1 AND min(digest) = max(digest) AS same",
        f"toUnixTimestamp64Milli(slice_start) + {width_ms} <= {{open_from:Int64}} AS closed",
        *(f"anyIf(events, side = '{side}') AS {side}_events" for side, _ in sides),
        *(f"anyIf(s{index}, side = '{side}') AS {side}_s{index}" for side, _ in sides for index in range(len(states))),
    ]
    return f"SELECT {', '.join(paired)}\nFROM (\n{union}\n)\nGROUP BY {', '.join(['slice_start', *dimensions])}"


def _windows(metric: Metric, grain: str, database: str) -> str:
    """One row per window and dimensions with the five readings; a reader without a row for a window says zero."""
    kind = metric.agg.value_type
    columns = [quote(name) for name in ("slice_start", *metric.by, "events", *(c.name for c in metric.agg.state))]
    key = ["window_start", "window_end", *(f"{quote(n)} AS d{index}" for index, n in enumerate(metric.by))]
    zero, unbounded = f"CAST(0 AS {kind})", f"CAST(NULL AS Nullable({kind}))"

    def side(readings: dict[str, str], bounds: tuple[str, str], relation: str) -> str:
        values = ", ".join(f"{readings.get(reader, zero)} AS {reader}_value" for reader in READERS)
        return f"SELECT {', '.join(key)}, {values}, {bounds[0]} AS low, {bounds[1]} AS high\nFROM (\n{relation}\n)"

    no_bounds = (unbounded, unbounded)
    its_bounds = (f"CAST(lower AS Nullable({kind}))", f"CAST(upper AS Nullable({kind}))")
    speed = side({"speed": "value"}, no_bounds, presented(metric, grain, _speed(metric, database, columns)))
    expected = side({"expected": "value"}, its_bounds, presented(metric, grain, _expected(metric, database, columns)))
    batch = side(
        {"counted": "value_counted", "with_late": "value_with_late", "exact": "value"},
        no_bounds,
        f"SELECT * FROM {quote(database)}.{quote('batch_' + metric.name)}"
        " WHERE metric_version = {version:String} AND run_id = {run_id:String}"
        f" AND partition = toDate({{day:String}}) AND grain = {_grain(grain)}",
    )
    dimensions = _dimension_names(metric)
    shown = [
        "window_start",
        "window_end",
        *dimensions,
        "toUnixTimestamp64Milli(window_end) <= {open_from:Int64} AS closed",
        *(f"sum({reader}_value) AS {reader}" for reader in READERS),
        "max(low) AS lower_bound",
        "max(high) AS upper_bound",
    ]
    union = "\nUNION ALL\n".join((speed, expected, batch))
    return (
        f"SELECT {', '.join(shown)}\nFROM (\n{union}\n)\n"
        f"GROUP BY {', '.join(['window_start', 'window_end', *dimensions])}"
    )


def _speed(metric: Metric, database: str, columns: list[str]) -> str:
    # FINAL: a slice that was written several times counts once, as its most complete row
    return (
        f"(SELECT {', '.join(columns)} FROM {quote(database)}.{quote('speed_' + metric.name)} FINAL"
        " WHERE metric_version = {version:String}"
        " AND slice_start >= fromUnixTimestamp64Milli({start:Int64}, 'UTC')"
        " AND slice_start < fromUnixTimestamp64Milli({end:Int64}, 'UTC'))"
    )


def _expected(metric: Metric, database: str, columns: list[str]) -> str:
    return (
        f"(SELECT {', '.join(columns)} FROM {quote(database)}.{quote('expected_' + metric.name)}"
        " WHERE metric_version = {version:String} AND run_id = {run_id:String} AND partition = toDate({day:String}))"
    )


def _dimension_names(metric: Metric) -> list[str]:
    return [f"d{index}" for index in range(len(metric.by))]


def _grain(grain: str) -> str:
    """A grain is made of digits and a unit, so it needs no escaping; anything else is a programming error."""
    if not grain.isalnum():
        message = f"a grain is digits and a unit; got {grain!r}"
        raise ValueError(message)
    return f"'{grain}'"
