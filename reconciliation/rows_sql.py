"""The rows of one metric and day as each writer left them, as SELECTs that name their columns.

Bound names, here and in everything made of these: `run_id` (String), `day` (String, ISO date), `start`, `end` and
`open_from` (Int64, milliseconds since the epoch), and `version_<metric>` (String); see `diff.Scope.parameters`.
"""

from collections.abc import Iterable

from infra.clickhouse import quote
from metrics.catalog import Metric

READERS = ("speed", "expected", "counted", "with_late", "exact")
"""The five readings of a window, in the order in which they are explained."""

_SESSION_COLUMNS = ("window_start", "window_end", "length_ms", "session_key")


def place(metric: Metric) -> tuple[str, ...]:
    """The columns, unquoted, that say where in time a row lies: its slice, or its session and whose it is."""
    return _SESSION_COLUMNS if metric.session else ("slice_start",)


def names(metric: Metric) -> tuple[str, ...]:
    """The columns, unquoted, that name a row besides its start: the key of a session, then the dimensions."""
    return ("session_key", *metric.by) if metric.session else metric.by


def states(metric: Metric) -> tuple[str, ...]:
    """The columns, unquoted, of the number of events and their state."""
    return ("events", *(column.name for column in metric.agg.state))


def speed(metric: Metric, database: str, columns: Iterable[str]) -> str:
    """What the speed layer published for the day."""
    # FINAL: a slice that was written several times counts once, as its most complete row
    return (
        f"SELECT {', '.join(columns)} FROM {_table(database, 'speed', metric)} AS r FINAL"
        f" WHERE r.metric_version = {_version(metric)} AND {_of_day(metric)}"
    )


def expected(metric: Metric, database: str, columns: Iterable[str]) -> str:
    """What the run says the speed layer had to publish for the day."""
    return f"SELECT {', '.join(columns)} FROM {_table(database, 'expected', metric)} AS r WHERE {_of_run(metric)}"


def batch(metric: Metric, database: str, columns: Iterable[str]) -> str:
    """What the run computed for the day, in all three readings."""
    return f"SELECT {', '.join(columns)} FROM {_table(database, 'batch', metric)} AS r WHERE {_of_run(metric)}"


def _of_run(metric: Metric) -> str:
    return (
        f"r.metric_version = {_version(metric)} AND r.run_id = {{run_id:String}}"
        " AND r.partition = toDate({day:String})"
    )


def _of_day(metric: Metric) -> str:
    """Slices that start in the day; sessions whose last instant lies in it."""
    start, end = (f"fromUnixTimestamp64Milli({{{name}:Int64}}, 'UTC')" for name in ("start", "end"))
    window = metric.session
    if window is None:
        return f"r.slice_start >= {start} AND r.slice_start < {end}"
    longest = window.max_length_ms + window.gap_ms
    # the bound on window_start follows from the others; it is the one that the sorting key can use
    earliest = f"fromUnixTimestamp64Milli({{start:Int64}} - {longest}, 'UTC')"
    return (
        f"r.window_end > {start} AND r.window_end <= {end} AND r.is_deleted = 0"
        f" AND r.window_start >= {earliest} AND r.window_start < {end}"
    )


def _version(metric: Metric) -> str:
    return f"{{version_{metric.name}:String}}"


def _table(database: str, layer: str, metric: Metric) -> str:
    return f"{quote(database)}.{quote(f'{layer}_{metric.name}')}"
