"""The SQL of one metric's windows by layer: what speed published, what batch publishes, and what of both is served.

Every SELECT here has the columns `keys`, value, lower, upper, events, is_final, final_ratio and as_of; `served` has
more.
"""

from datetime import timedelta

from infra.clickhouse import quote
from metrics.catalog import Metric
from metrics.window import GlobalWindow, SessionWindow, milliseconds
from serving import window_sql
from serving.days import Days, table, text
from serving.presented import dimensions, keys, presented, presented_items
from serving.readings import is_of

# what a row of `served` is made of: the value that is served where the day is certified, or in part; what speed shows
# where that is not served, only compared; what speed shows and is served
_SERVED, _COMPARED, _BOTH = 0, 1, 2


def speed(metric: Metric, grain: str, database: str, allowed_lateness: timedelta) -> str:
    """Windows merged from the most complete published slices; `as_of` is when the last of them was written.

    A window is final once the data watermark of every topic partition has passed its end and the lateness: what comes
    later for it is late, and never counted by this layer.
    """
    shown = [
        *(f"p.{name} AS {name}" for name in (*keys(metric), "value", "lower", "upper", "events")),
        f"{passed('p.window_end', database, allowed_lateness)} AS is_final",
        "toFloat64(0) AS final_ratio",
        "p.as_of AS as_of",
    ]
    return f"SELECT {', '.join(shown)}\nFROM (\n{_speed_windows(metric, grain, database)}\n) AS p"


def batch(metric: Metric, grain: str, days: Days) -> str:
    """Exact windows of the run that each day currently publishes, certified or not; `as_of` is when that was.

    A window is final once every UTC day that it touches is published and certified.
    """
    shown = [
        *(f"p.{name} AS {name}" for name in (*keys(metric), "value", "lower", "upper", "events")),
        f"{days.share(metric.window(grain), 'p.window_start', 'p.window_end')} = 1 AS is_final",
        f"{days.share(metric.window(grain), 'p.window_start', 'p.window_end')} AS final_ratio",
        "p.as_of AS as_of",
    ]
    return f"SELECT {', '.join(shown)}\nFROM (\n{_batch_windows(metric, grain, days)}\n) AS p"


def served(metric: Metric, grain: str, days: Days, allowed_lateness: timedelta) -> str:
    """Windows that either layer has, with what is served of each.

    Each slice comes from one layer: from batch where its day is certified, else from speed. What does not merge, since
    batch keeps distinct values and speed a sketch, comes from batch where all the days of a window are certified. A
    session belongs to one day.

    Returns:
        The common columns, and others whose names begin with `_`, as those of no dimension do: `_from_batch`, whether
        all of the window is certified; `_is_shown`, false for what speed alone has of certified days; `_from_speed`,
        `_speed_value`, `_speed_lower` and `_speed_upper`: what speed shows for the window, whatever is served.
        `final_ratio` is how much of the window's time has its numbers from certified days.
    """
    window = metric.window(grain)
    mixed = not (metric.agg.by_value or isinstance(window, SessionWindow) or window_sql.within_a_day(window))
    sides = _mixed_sides(metric, grain, days) if mixed else _whole_sides(metric, grain, days)
    values = ("value", "lower", "upper")
    folded = [
        "f.window_start AS window_start",
        f"{_taken('window_end')} AS window_end",
        *(f"f.{name} AS {name}" for name in map(quote, dimensions(metric))),
        *([f"{_taken('length_ms')} AS length_ms"] if metric.session else []),
        *(f"{_taken(name)} AS {name}" for name in (*values, "events", "as_of")),
        f"countIf(f._side = {_SERVED}) > 0 AS _certain",
        f"countIf(f._side != {_COMPARED}) > 0 AS _is_shown",
        f"countIf(f._side != {_SERVED}) > 0 AS _from_speed",
        *(f"anyIf(f.{name}, f._side != {_SERVED}) AS _speed_{name}" for name in values),
    ]
    share = _share(metric, grain, days, "c.window_start", "c.window_end") if mixed else "toFloat64(c._certain)"
    shown = [
        *(f"c.{name} AS {name}" for name in (*keys(metric), *values, "events", "as_of", "_is_shown", "_from_speed")),
        *(f"c._speed_{name} AS _speed_{name}" for name in values),
        f"{share} AS final_ratio",
        "final_ratio = 1 AND c._certain AS _from_batch",
        f"_from_batch OR {passed('c.window_end', days.database, allowed_lateness)} AS is_final",
    ]
    names = ", ".join(f"f.{name}" for name in ("window_start", *map(quote, dimensions(metric))))
    return (
        f"SELECT {', '.join(shown)}\nFROM (\nSELECT {', '.join(folded)}\nFROM (\n{sides}\n) AS f\n"
        f"GROUP BY {names}\n) AS c"
    )


def passed(window_end: str, database: str, allowed_lateness: timedelta) -> str:
    """Whether every topic partition's watermark has passed the end of a window and the lateness."""
    watermark = f"(SELECT min(watermark) FROM {table(database, 'watermarks')} FINAL)"
    return f"{window_end} + toIntervalMillisecond({milliseconds(allowed_lateness)}) <= {watermark}"


def _whole_sides(metric: Metric, grain: str, days: Days) -> str:
    """Whole windows of each layer: batch's where all their days are certified, and all of speed's."""
    columns = ", ".join([*keys(metric), "value", "lower", "upper", "events", "as_of"])
    window = metric.window(grain)
    share = _share(metric, grain, days, "window_start", "window_end")
    # a window of one day has batch's rows only where that day is certified
    whole = "" if isinstance(window, SessionWindow) or window_sql.within_a_day(window) else f" WHERE {share} = 1"
    return (
        f"SELECT {columns}, {_SERVED} AS _side FROM (\n{_batch_windows(metric, grain, days, certified=True)}\n)"
        f"{whole}\nUNION ALL\n"
        f"SELECT {columns}, if({share} = 1, {_COMPARED}, {_BOTH}) AS _side\n"
        f"FROM (\n{_speed_windows(metric, grain, days.database)}\n)"
    )


def _mixed_sides(metric: Metric, grain: str, days: Days) -> str:
    """Windows of slices that each come from one layer, and the windows of speed's slices alone."""
    on_certified = f"toDate(t.slice_start) IN {days.certified}"
    side = f"arrayJoin(if({on_certified}, [{_COMPARED}], [{_SERVED}, {_COMPARED}])) AS _side"
    columns = _columns(metric, "t")
    relation = (
        f"(SELECT {columns}, t.written_at AS as_of, {side} FROM {_speed_rows(metric, days.database)}\n"
        f"UNION ALL\nSELECT {columns}, p.published_at AS as_of, {_SERVED} AS _side"
        f" FROM {_batch_rows(metric, days, certified=True)})"
    )
    windows = presented(metric, grain, relation, also=("max(s.as_of) AS as_of",), apart=("_side",))
    # events = 0: the exact values take none of the window's events
    return f"SELECT * FROM (\n{windows}\n) WHERE events > 0"


def _speed_windows(metric: Metric, grain: str, database: str) -> str:
    relation = f"(SELECT {_columns(metric, 't')}, t.written_at AS as_of FROM {_speed_rows(metric, database)})"
    return presented(metric, grain, relation, also=("max(s.as_of) AS as_of",))


def _batch_windows(metric: Metric, grain: str, days: Days, *, certified: bool = False) -> str:
    columns = _columns(metric, "t", exact=True)
    relation = f"(SELECT {columns}, p.published_at AS as_of FROM {_batch_rows(metric, days, certified=certified)})"
    present = presented_items if metric.agg.by_value else presented
    windows = present(metric, grain, relation, ("max(s.as_of) AS as_of",))
    # events = 0: the exact values take none of the window's events, as when all are copies of events that lie elsewhere
    return f"SELECT * FROM (\n{windows}\n) WHERE events > 0"


def _speed_rows(metric: Metric, database: str) -> str:
    """What stands after FROM to read the speed layer's rows as `t`."""
    # FINAL: what was written several times counts once, as its most complete row; only then are tombstones left out,
    # which are the most complete rows of sessions that have become part of others
    alive = " AND t.is_deleted = 0" if metric.session else ""
    version = text(metric.metric_version)
    return f"{table(database, f'speed_{metric.name}')} AS t FINAL WHERE t.metric_version = {version}{alive}"


def _batch_rows(metric: Metric, days: Days, *, certified: bool) -> str:
    """What stands after FROM to read the exact rows of the days' current runs as `t`, their days as `p`."""
    published = days.published_and_certified if certified else days.published
    return (
        f"{table(days.database, f'batch_{metric.name}')} AS t\n"
        f"INNER JOIN (\n{published}\n) AS p ON t.partition = p.partition AND t.run_id = p.run_id\n"
        f"WHERE t.metric_version = {text(metric.metric_version)} AND {is_of('exact', 't.reading')}"
    )


def _columns(metric: Metric, relation: str, *, exact: bool = False) -> str:
    """The columns of a row of slices or sessions; of `exact` ones, items where the aggregation is by value."""
    time = ("window_start", "window_end", "length_ms") if metric.session else ("slice_start",)
    by_items = exact and metric.agg.by_value
    state = ("item", "n") if by_items else ("events", *(column.name for column in metric.agg.state))
    return ", ".join(f"{relation}.{name} AS {name}" for name in map(quote, (*time, *dimensions(metric), *state)))


def _share(metric: Metric, grain: str, days: Days, start: str, end: str) -> str:
    """How much of a window that either layer has lies in certified days."""
    window = metric.window(grain)
    others = None
    if isinstance(window, GlobalWindow):
        others = (
            f"SELECT DISTINCT toDate(slice_start) AS partition FROM {table(days.database, f'speed_{metric.name}')}"
            f" WHERE metric_version = {text(metric.metric_version)}"
        )
    return days.share(window, start, end, others)


def _taken(name: str) -> str:
    """What is served of a column: the certified or mixed window's, else speed's."""
    certain = f"countIf(f._side = {_SERVED}) > 0"
    other = f"anyIf(f.{name}, f._side = {_BOTH})"
    if name in {"window_end", "length_ms"}:
        # also what is not shown has an end
        other = f"any(f.{name})"
    return f"if({certain}, anyIf(f.{name}, f._side = {_SERVED}), {other})"
