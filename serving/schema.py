"""The ClickHouse tables of one source, generated from its catalog.

One database per source. Per metric: what the speed layer published (`speed_<m>`), what the batch layer says it had to
publish (`expected_<m>`) and the exact values (`batch_<m>`). Per source: the ledger, exceptions, watermarks, batch runs,
publications and certificates. Every statement is additive and may be run again at any time.
"""

from collections.abc import Iterable

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from metrics.catalog import Catalog, Metric
from serving import views
from serving.evolution import evolve
from serving.table import INSTANT, TIME, Table


def tables(catalog: Catalog) -> tuple[Table, ...]:
    """Every table of the catalog's source: first those of the source, then three per metric."""
    return (*_source_tables(), *(table for metric in catalog.metrics for table in metric_tables(metric)))


def metric_tables(metric: Metric) -> tuple[Table, Table, Table]:
    """`speed_<m>`, `expected_<m>` and `batch_<m>` of one metric.

    `speed_<m>` and `expected_<m>` hold one row per (metric_version, slice_start, dimensions) with `events`, the number
    of events folded, and the aggregation's state columns. `batch_<m>` holds one row per (metric_version, grain,
    window_start, dimensions): `value` counts every well-formed event once, `value_counted` only those the speed layer
    counted, `value_with_late` those and the late ones.
    """
    dimensions = tuple((name, "String") for name in metric.by)
    states = tuple((column.name, column.clickhouse_type) for column in metric.agg.state)
    value = metric.agg.value_type
    run = (("run_id", "String"), ("partition", "Date"))
    slices = (
        ("metric_version", "String"),
        ("slice_start", TIME),
        *dimensions,
        ("events", "UInt64"),
        *states,
    )
    slice_key = ("metric_version", "slice_start", *metric.by)
    return (
        Table(
            f"speed_{metric.name}",
            (*slices, ("pane", "LowCardinality(String)"), ("written_at", f"{TIME} DEFAULT now64(3)")),
            slice_key,
            replacing=True,
            version="events",
        ),
        Table(f"expected_{metric.name}", (*run, *slices), slice_key, partition_by=("partition", "run_id")),
        Table(
            f"batch_{metric.name}",
            (
                *run,
                ("metric_version", "String"),
                ("grain", "LowCardinality(String)"),
                ("window_start", TIME),
                ("window_end", TIME),
                *dimensions,
                ("events", "UInt64"),
                ("value", value),
                ("value_with_late", value),
                ("value_counted", value),
            ),
            ("metric_version", "grain", "window_start", *metric.by),
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
            (*run, *exception),
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


def ddl(catalog: Catalog, database: str) -> list[str]:
    """Statements that create the database, then its tables, then its views; running them again changes no row."""
    return [
        f"CREATE DATABASE IF NOT EXISTS {quote(database)}",
        *(table.create(database) for table in tables(catalog)),
        *views.ddl(catalog, database),
    ]


def apply(client: Client, catalog: Catalog, database: str) -> None:
    """Bring the database to the catalog's shape: tables are added, views replaced, no row is dropped.

    A table whose columns or key can no longer hold its metric, because the definition changed, is set aside under
    another name; a column that is merely missing is added.
    """
    client.command(f"CREATE DATABASE IF NOT EXISTS {quote(database)}")
    evolve(client, database, tables(catalog))
    for statement in ddl(catalog, database):
        client.command(statement)
