"""A ClickHouse table as a value: what it holds, how it is sorted, and the statement that creates it."""

from collections.abc import Iterable
from dataclasses import dataclass

from infra.clickhouse import quote

TIME = "DateTime64(3, 'UTC')"
"""Event and record times: milliseconds since the epoch, always UTC."""

INSTANT = "DateTime64(6, 'UTC')"
"""When something was decided here: microseconds, so that two decisions of one second keep their order."""

MERGE_SETTINGS = {
    # An insert that is retried with the same token after a lost answer is dropped; without this a plain table keeps no
    # tokens. Older tokens are forgotten, so speed rows are replaceable by key and a batch run has its own run_id.
    "non_replicated_deduplication_window": "10000",
}


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


def _names(names: Iterable[str]) -> str:
    return ", ".join(quote(name) for name in names)
