"""The ClickHouse tables of one source, generated from its catalog.

One database per source. Per metric: what the speed layer published (`speed_<m>`), what the batch layer says it had to
publish (`expected_<m>`) and the exact slices (`batch_<m>`); a ratio has views only. Per source: the ledger, exceptions,
watermarks, batch runs, publications and certificates. Every statement is additive and may be run again at any time.
"""

from collections.abc import Collection, Iterable

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from metrics.catalog import Catalog, Metric
from metrics.fold import SESSION_KEY
from serving.alert_tables import alert_tables
from serving.evolution import evolve
from serving.lookup_tables import lookup_tables
from serving.table import INSTANT, TIME, Table
from serving.versions import record, rename, versions_table
from serving.views import views


def tables(catalog: Catalog) -> tuple[Table, ...]:
    """Every table of the catalog's source: first those of the source, then three per metric."""
    of_metrics = (table for metric in catalog.metrics for table in metric_tables(metric))
    return (*_source_tables(), *alert_tables(), versions_table(), *lookup_tables(catalog.lookups), *of_metrics)


def table(name: str) -> Table:
    """A table of the source itself, by its name.

    Raises:
        KeyError: There is none.
    """
    return {each.name: each for each in _source_tables()}[name]


def metric_tables(metric: Metric) -> tuple[Table, Table, Table]:
    """`speed_<m>`, `expected_<m>` and `batch_<m>` of one metric.

    `speed_<m>` and `expected_<m>` hold one row per (metric_version, slice_start, dimensions) with `events`, the number
    of events folded, and the aggregation's state columns. `batch_<m>` holds exact slices by `reading`: `exact` counts
    every well-formed event once, `counted` only those the speed layer counted, `with_late` those and the late ones;
    `all` stands for the three where they are the same. It has the same columns; where the aggregation is `by_value` it
    has a row per distinct value instead, with `item` and `n`, how many events have it.

    Of sessions, `window_start`, `window_end`, `length_ms` (from the first event to the last) and `session_key` stand
    instead of `slice_start`. `speed_<m>` then also has `chain_events`, the events of all sessions that follow one
    another without a gap, by which the more complete row replaces the other, and `is_deleted`: 1 for a tombstone, whose
    session has become part of another.
    """
    version = ("metric_version", "String")
    dimensions = tuple((name, "String") for name in metric.by)
    if metric.session:
        times: tuple[tuple[str, str], ...] = (
            ("window_start", TIME),
            ("window_end", TIME),
            ("length_ms", "UInt64"),
            (SESSION_KEY, "String"),
        )
        key: tuple[str, ...] = ("window_start", SESSION_KEY, *metric.by)
        chain: tuple[tuple[str, str], ...] = (("chain_events", "UInt64"), ("is_deleted", "UInt8"))
    else:
        times, key, chain = (("slice_start", TIME),), ("slice_start", *metric.by), ()
    states = (("events", "UInt64"), *((column.name, column.clickhouse_type) for column in metric.agg.state))
    exact = (("item", f"Nullable({metric.agg.item_type})"), ("n", "UInt64")) if metric.agg.by_value else states
    run = (("run_id", "String"), ("partition", "Date"))
    written = (("pane", "LowCardinality(String)"), ("written_at", f"{TIME} DEFAULT now64(3)"))
    return (
        Table(
            f"speed_{metric.name}",
            (version, *times, *dimensions, *states, *chain, *written),
            ("metric_version", *key),
            replacing=True,
            version="chain_events" if metric.session else "events",
        ),
        Table(
            f"expected_{metric.name}",
            (*run, version, *times, *dimensions, *states),
            ("metric_version", *key),
            partition_by=("partition", "run_id"),
        ),
        Table(
            f"batch_{metric.name}",
            (*run, version, ("reading", "LowCardinality(String)"), *times, *dimensions, *exact),
            ("metric_version", "reading", *key),
            partition_by=("partition", "run_id"),
        ),
    )


def _source_tables() -> Iterable[Table]:
    count_columns = tuple((name, "UInt64") for name in ("counted", "late", "duplicate", "id_conflict", "dead_letter"))
    position = (("topic", "String"), ("topic_partition", "Int32"))
    exception = (
        *position,
        ("offset", "Int64"),
        ("record_time", TIME),
        ("event_id", "Nullable(String)"),
        ("event_time", f"Nullable({TIME})"),
        ("disposition", "LowCardinality(String)"),
        ("reason", "String"),
    )
    run = (("run_id", "String"), ("partition", "Date"))
    return (
        Table(
            "ledger",
            (*position, ("block", "Int64"), ("records", "UInt64"), *count_columns),
            ("topic", "topic_partition", "block"),
            replacing=True,
            version="records",
        ),
        Table("exceptions", exception, ("topic", "topic_partition", "offset"), replacing=True),
        Table(
            "batch_exceptions",
            # the offset, in the same topic partition, at which a dead letter was produced again after a fix
            (*run, *exception, ("repaired_offset", "Nullable(Int64)")),
            ("topic", "topic_partition", "offset"),
            partition_by=("partition", "run_id"),
        ),
        Table(
            "watermarks",
            (*position, ("watermark", TIME), ("next_offset", "Int64"), ("at", f"{TIME} DEFAULT now64(3)")),
            ("topic", "topic_partition"),
            replacing=True,
            version="next_offset",
        ),
        Table(
            "speed_alarms",
            (
                ("group_id", "String"),
                ("metrics", "Array(String)"),
                ("dimension", "String"),
                ("rows", "UInt64"),
                ("slice_start", TIME),
                ("text", "String"),
                ("at", f"{TIME} DEFAULT now64(3)"),
            ),
            ("group_id", "slice_start"),
            replacing=True,
            version="rows",
        ),
        Table(
            "ledger_checks",
            (
                ("topic", "String"),
                ("closes", "Bool"),
                ("since", TIME),
                ("counted", "UInt64"),
                ("published", "Nullable(UInt64)"),
                ("unread", "UInt64"),
                ("text", "String"),
                ("at", TIME),
            ),
            ("topic",),
            replacing=True,
        ),
        Table(
            "partition_lags",
            (
                *position,
                ("lag_offsets", "Int64"),
                ("lag_ms", "Nullable(Int64)"),
                ("skew_ms", "Nullable(Int64)"),
                ("at", TIME),
            ),
            ("topic", "topic_partition"),
            replacing=True,
        ),
        Table(
            "log_blocks",
            # one row per block of offsets, by the index pass of the batch layer; hours are counted from the epoch
            (
                ("topic", "String"),
                ("topic_id", "String"),
                ("decoding", "String"),
                ("topic_partition", "Int32"),
                ("block", "Int64"),
                ("begin", "Int64"),
                ("end", "Int64"),
                ("records", "UInt64"),
                ("checksum", "UInt64"),
                ("events", "Map(Int64, UInt64)"),
                ("latest", "Map(Int64, Int64)"),
                ("dead_letters", "Map(Int64, UInt64)"),
                ("repairs", "Array(Int64)"),
                ("at", f"{TIME} DEFAULT now64(3)"),
            ),
            ("topic", "topic_id", "decoding", "topic_partition", "block"),
            replacing=True,
            version="end",
        ),
        Table(
            "batch_runs",
            (
                *run,
                ("catalog_version", "String"),
                ("metric_versions", "Array(String)"),
                ("manifest", "String"),
                ("status", "LowCardinality(String)"),
                ("events", "UInt64"),
                *count_columns,
                ("at", f"{TIME} DEFAULT now64(3)"),
            ),
            ("partition", "run_id", "at"),
        ),
        Table(
            "publications",
            (
                ("partition", "Date"),
                ("run_id", "String"),
                ("metric_versions", "Array(String)"),
                ("alert_versions", "Array(String)"),
                ("published_at", f"{INSTANT} DEFAULT now64(6)"),
            ),
            ("partition", "published_at"),
        ),
        Table(
            "certificates",
            (
                ("partition", "Date"),
                ("run_id", "String"),
                ("certified", "Bool"),
                ("verdict", "LowCardinality(String)"),
                ("residual", "UInt64"),
                ("causes", "Map(String, UInt64)"),
                ("evidence", "String"),
                ("issued_at", f"{INSTANT} DEFAULT now64(6)"),
            ),
            ("partition", "issued_at"),
        ),
    )


def ddl(catalog: Catalog, database: str, beside: Collection[str] = ()) -> list[str]:
    """Statements that create the database, then its tables, then its views; running them again changes no row.

    Args:
        catalog: the source's.
        database: its database.
        beside: metrics whose name shows another version than the catalog's.
    """
    return [
        f"CREATE DATABASE IF NOT EXISTS {quote(database)}",
        *(table.create(database) for table in tables(catalog)),
        *(view.create(database) for view in views(catalog, database, beside)),
    ]


def apply(client: Client, catalog: Catalog, database: str) -> None:
    """Bring the database to the catalog's shape: tables are added, views replaced, no row is dropped.

    A metric whose definition changed keeps showing its old version, beside which the new one gets views of its own,
    until `versions.switch`. Where its tables can no longer hold it, because their columns or key are others, they are
    set aside under another name and the new version is shown at once. A column that is merely missing is added.
    """
    client.command(f"CREATE DATABASE IF NOT EXISTS {quote(database)}")
    aside = evolve(client, database, tables(catalog))
    there = _comments(client, database)
    for table in tables(catalog):
        if table.name not in there:
            client.command(table.create(database))
    replaced = [m for m in catalog.shown if any(t.name in aside for one in m.operands for t in metric_tables(one))]
    now = record(client, database, catalog, replaced)
    beside = {metric.name for metric in catalog.shown if not now.is_active(metric)}
    for view in views(catalog, database, beside):
        if there.get(view.name) != view.comment:
            client.command(view.create(database))
    rename(client, database, replaced)


def _comments(client: Client, database: str) -> dict[str, str]:
    """Tables and views that are there, with their comments."""
    sql = "SELECT name, comment FROM system.tables WHERE database = {database:String}"
    rows = client.query(sql, parameters={"database": database}).result_rows
    return {str(name): str(comment) for name, comment in rows}
