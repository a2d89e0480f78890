"""The ClickHouse tables of one source, generated from its catalog.

One database per source. Per metric: what the speed layer published (`speed_<m>`), what the batch layer says it had to
publish (`expected_<m>`) and the exact values (`batch_<m>`). Per source: the ledger, exceptions, watermarks, batch runs,
publications and certificates. Every statement is additive and may be run again at any time.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from infra.clickhouse import quote
from metrics.catalog import Catalog, Metric
from serving import views

TIME = "DateTime64(3, 'UTC')"
"""Event and record times: milliseconds since the epoch, always UTC."""

INSTANT = "DateTime64(6, 'UTC')"
"""When something was decided here: microseconds, so that two decisions of one second keep their order."""

MERGE_SETTINGS = {
    # An insert that is retried with the same token after a lost answer is dropped; without this a plain table keeps no
    # tokens. Older tokens are forgotten, so speed rows are replaceable by key and a batch run has its own run_id.
    "non_replicated_deduplication_window": "10000",
}


class Executor(Protocol):
    """The one method of a ClickHouse client that applying a schema needs."""

    def command(self, cmd: str) -> object:
        """Run one statement."""


@dataclass(frozen=True)
class Table:
    """A table of one source: columns in order, then how rows are sorted, split and replaced.

    Attributes:
        name: unquoted table name.
        columns: (unquoted name, ClickHouse type and default) in order.
        key: unquoted names of the sorting key.
        version: for a replacing table, the column whose greatest value wins; on a tie the last insert does. None keeps
            every row.
        replacing: whether rows of one key replace each other.
        partition_by: unquoted names of the partition key.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]
    replacing: bool = False
    version: str | None = None
    partition_by: tuple[str, ...] = ()

    def create(self, database: str) -> str:
        """`CREATE TABLE IF NOT EXISTS` with every identifier quoted."""
        columns = ",\n".join(f"    {quote(name)} {kind}" for name, kind in self.columns)
        version = quote(self.version) if self.version else ""
        engine = f"ReplacingMergeTree({version})" if self.replacing else "MergeTree"
        partition = f"\nPARTITION BY ({_names(self.partition_by)})" if self.partition_by else ""
        settings = ", ".join(f"{name} = {value}" for name, value in MERGE_SETTINGS.items())
        return (
            f"CREATE TABLE IF NOT EXISTS {quote(database)}.{quote(self.name)} (\n{columns}\n)\n"
            f"ENGINE = {engine}{partition}\nORDER BY ({_names(self.key)})\nSETTINGS {settings}"
        )


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


def apply(client: Executor, catalog: Catalog, database: str) -> None:
    """Bring the database to the catalog's shape. Adds tables, replaces views, drops nothing."""
    for statement in ddl(catalog, database):
        client.command(statement)


def _names(names: Iterable[str]) -> str:
    return ", ".join(quote(name) for name in names)
