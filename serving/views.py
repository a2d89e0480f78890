"""The SQL of the serving views: slices merged into windows, and one layer chosen per window.

Per metric and grain there are three views. `<m>_<grain>__speed` is what the speed layer published, `<m>_<grain>__batch`
is what the batch layer currently publishes, and `<m>_<grain>` shows every window once: from batch when the UTC day in
which the window starts is published and certified for this metric version, else from speed.

Every number is computed in one place: `presented` merges slices for the speed view here and for the expected states in
reconciliation, so that the two cannot differ by their SQL.
"""

from collections.abc import Iterable
from datetime import timedelta

from infra.clickhouse import quote
from metrics.aggregation import StateColumn
from metrics.catalog import Catalog, Metric
from metrics.window import TumblingWindow, milliseconds


def view_name(metric: Metric, grain: str) -> str:
    """Unquoted name of the served view, such as `revenue_1m`."""
    return f"{metric.name}_{grain}"


def ddl(catalog: Catalog, database: str) -> list[str]:
    """`CREATE OR REPLACE VIEW` for each metric and grain: speed, batch, then the served view that reads both."""
    statements = []
    for metric in catalog.metrics:
        for window in metric.windows:
            name = view_name(metric, window.grain)
            for suffix, body in (
                ("__speed", speed_sql(metric, window.grain, database, catalog.allowed_lateness)),
                ("__batch", batch_sql(metric, window.grain, database)),
                ("", served_sql(metric, window.grain, database)),
            ):
                statements.append(f"CREATE OR REPLACE VIEW {quote(database)}.{quote(name + suffix)} AS\n{body}")
    return statements


def presented(metric: Metric, grain: str, relation_sql: str, also: Iterable[str] = ()) -> str:
    """SELECT that merges a metric's slices into windows and presents their states.

    Args:
        metric: the metric whose states the relation holds.
        grain: one of the metric's grains.
        relation_sql: a table, or a SELECT in parentheses, with one row per (slice_start, dimensions) of a single metric
            version: `slice_start`, the dimensions, `events` and the state columns. A replacing table needs `FINAL`.
        also: further aggregate expressions over the relation `s`, each with an alias, carried to the result.

    Returns:
        SQL with one row per (window_start, dimensions): `window_start, window_end, <dimensions>, events, value, lower,
        upper` and the aliases of `also`. The end of a window is exclusive; bounds of an exact aggregation are NULL.
    """
    window = metric.window(grain)
    start = _window_start("s.slice_start", window)
    shown_as = metric.agg.present_sql()
    dimensions = [quote(name) for name in metric.by]
    merged = [
        f"{start} AS window_start",
        *(f"s.{name} AS {name}" for name in dimensions),
        "sum(s.events) AS events",
        *(_merge(column) for column in metric.agg.state),
        *also,
    ]
    carried = [expression.rsplit(" AS ", 1)[1] for expression in also]
    shown = [
        "w.window_start AS window_start",
        f"w.window_start + toIntervalMillisecond({window.size_ms}) AS window_end",
        *(f"w.{name} AS {name}" for name in dimensions),
        "w.events AS events",
        f"CAST({shown_as.value} AS {metric.agg.value_type}) AS value",
        f"CAST({shown_as.lower} AS Nullable({metric.agg.value_type})) AS lower",
        f"CAST({shown_as.upper} AS Nullable({metric.agg.value_type})) AS upper",
        *(f"w.{name} AS {name}" for name in carried),
    ]
    return (
        f"SELECT {', '.join(shown)}\nFROM (\n"
        f"  SELECT {', '.join(merged)}\n  FROM {relation_sql} AS s\n"
        f"  GROUP BY {', '.join([start, *(f's.{name}' for name in dimensions)])}\n) AS w"
    )


def speed_sql(metric: Metric, grain: str, database: str, allowed_lateness: timedelta) -> str:
    """Windows merged from the most complete published slices; `as_of` is when the last of them was written.

    A window is final once the data watermark of every topic partition has passed its end and the lateness: what comes
    later for it is late, and never counted by this layer.
    """
    columns = [quote(name) for name in ("slice_start", *metric.by, "events", *_state_names(metric), "written_at")]
    # FINAL: a slice that was written several times counts once, as its most complete row
    relation = (
        f"(SELECT {', '.join(columns)} FROM {_table(database, f'speed_{metric.name}')} FINAL"
        f" WHERE metric_version = {_text(metric.metric_version)})"
    )
    watermark = f"(SELECT min(watermark) FROM {_table(database, 'watermarks')} FINAL)"
    shown = [
        *_shown_columns(metric, "p"),
        "p.events AS events",
        "'speed' AS layer",
        f"p.window_end + toIntervalMillisecond({milliseconds(allowed_lateness)}) <= {watermark} AS is_final",
        "'provisional' AS status",
        "CAST(NULL AS Nullable(Float64)) AS drift",
        f"{_text(metric.metric_version)} AS metric_version",
        "p.as_of AS as_of",
    ]
    windows = presented(metric, grain, relation, also=("max(s.written_at) AS as_of",))
    return f"SELECT {', '.join(shown)}\nFROM (\n{windows}\n) AS p"


def batch_sql(metric: Metric, grain: str, database: str) -> str:
    """Exact windows of the run that each day currently publishes, certified or not; `as_of` is when it was published.

    Besides the columns of a served view: `value_with_late`, `value_counted`, `run_id` and `partition`.
    """
    metric.window(grain)
    unbounded = f"CAST(NULL AS Nullable({metric.agg.value_type}))"
    shown = [
        *(f"b.{name} AS {name}" for name in _keys(metric)),
        "b.value AS value",
        f"{unbounded} AS lower",
        f"{unbounded} AS upper",
        "b.events AS events",
        "'batch' AS layer",
        "p.certified AS is_final",
        "if(p.certified, 'certified', 'provisional') AS status",
        "CAST(NULL AS Nullable(Float64)) AS drift",
        "b.metric_version AS metric_version",
        "p.published_at AS as_of",
        "b.value_with_late AS value_with_late",
        "b.value_counted AS value_counted",
        "b.run_id AS run_id",
        "b.partition AS partition",
    ]
    return (
        f"SELECT {', '.join(shown)}\nFROM {_table(database, f'batch_{metric.name}')} AS b\n"
        f"INNER JOIN (\n{_days(metric, database)}\n) AS p ON b.partition = p.partition AND b.run_id = p.run_id\n"
        # 0: the exact values take none of the window's events, as when all are copies whose originals lie elsewhere
        f"WHERE b.metric_version = {_text(metric.metric_version)} AND b.grain = {_text(grain)} AND b.events > 0"
    )


def served_sql(metric: Metric, grain: str, database: str) -> str:
    """Each window once, from one layer; `drift` is the certified value less what the speed layer shows for it.

    The union is grouped by window and dimensions, so that a window cannot appear twice whatever the tables hold. On a
    certified day only the windows that batch has are shown: a window that speed alone has there is a defect, not data.
    """
    name = view_name(metric, grain)
    keys = _keys(metric)
    columns = ", ".join([*keys, "value", "lower", "upper", "is_final", "as_of"])
    certified = f"(SELECT partition FROM (\n{_days(metric, database)}\n) WHERE certified)"
    speed = f"SELECT {columns}, false AS is_batch FROM {_table(database, name + '__speed')}"
    batch = f"SELECT {columns}, true AS is_batch FROM {_table(database, name + '__batch')} WHERE is_final"
    folded = [
        *(f"u.{key} AS {key}" for key in keys),
        "max(u.is_batch) AS from_batch",
        "countIf(NOT u.is_batch) > 0 AS from_speed",
        "anyIf(u.value, u.is_batch) AS exact_value",
        "anyIf(u.value, NOT u.is_batch) AS speed_value",
        "anyIf(u.lower, NOT u.is_batch) AS speed_lower",
        "anyIf(u.upper, NOT u.is_batch) AS speed_upper",
        "max(u.is_final) AS final",
        "if(max(u.is_batch), maxIf(u.as_of, u.is_batch), max(u.as_of)) AS shown_as_of",
    ]
    shown = [
        *(f"c.{key} AS {key}" for key in keys),
        "if(c.from_batch, c.exact_value, c.speed_value) AS value",
        "if(c.from_batch, NULL, c.speed_lower) AS lower",
        "if(c.from_batch, NULL, c.speed_upper) AS upper",
        "if(c.from_batch, 'batch', 'speed') AS layer",
        "c.final AS is_final",
        "if(c.from_batch, 'certified', 'provisional') AS status",
        "if(c.from_batch AND c.from_speed, toFloat64(c.exact_value - c.speed_value), NULL) AS drift",
        f"{_text(metric.metric_version)} AS metric_version",
        "c.shown_as_of AS as_of",
    ]
    return (
        f"SELECT {', '.join(shown)}\nFROM (\nSELECT {', '.join(folded)}\nFROM (\n{speed}\nUNION ALL\n{batch}\n) AS u\n"
        f"GROUP BY {', '.join(f'u.{key}' for key in keys)}\n) AS c\n"
        f"WHERE c.from_batch OR toDate(c.window_start) NOT IN {certified}"
    )


def _days(metric: Metric, database: str) -> str:
    """Days whose current publication covers this metric version: partition, run_id, published_at, certified."""
    publications = _table(database, "publications")
    certificates = _table(database, "certificates")
    # columns are qualified: a bare name would mean the alias, which is an aggregate itself
    return (
        "SELECT d.partition AS partition, d.run_id AS run_id, d.published_at AS published_at,"
        " coalesce(k.certified, false) AS certified\n"
        "FROM (SELECT p.partition AS partition, argMax(p.run_id, p.published_at) AS run_id,"
        " argMax(p.metric_versions, p.published_at) AS covered, max(p.published_at) AS published_at"
        f" FROM {publications} AS p GROUP BY p.partition) AS d\n"
        "LEFT JOIN (SELECT c.partition AS partition, c.run_id AS run_id, argMax(c.certified, c.issued_at) AS certified"
        f" FROM {certificates} AS c GROUP BY c.partition, c.run_id) AS k\n"
        "ON d.partition = k.partition AND d.run_id = k.run_id\n"
        f"WHERE has(d.covered, {_text(metric.metric_version)})"
    )


def _window_start(column: str, window: TumblingWindow) -> str:
    """Start of the tumbling window that holds a time; also right before 1970, where integer division rounds upwards."""
    millis = f"toUnixTimestamp64Milli({column})"
    return f"fromUnixTimestamp64Milli({millis} - positiveModulo({millis}, {window.size_ms}), 'UTC')"


def _merge(column: StateColumn) -> str:
    return f"{column.merge_sql}(s.{quote(column.name)}) AS {quote(column.name)}"


def _keys(metric: Metric) -> list[str]:
    """The columns that name a window, quoted."""
    return ["window_start", "window_end", *map(quote, metric.by)]


def _shown_columns(metric: Metric, relation: str) -> list[str]:
    return [f"{relation}.{name} AS {name}" for name in (*_keys(metric), "value", "lower", "upper")]


def _state_names(metric: Metric) -> tuple[str, ...]:
    return tuple(column.name for column in metric.agg.state)


def _table(database: str, name: str) -> str:
    return f"{quote(database)}.{quote(name)}"


def _text(value: str) -> str:
    """A string literal: views take no bound parameters."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
