"""What becomes of tables that exist already when a catalog, or Lockstep itself, has changed."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from infra.clickhouse import quote
from serving.table import Table


@dataclass(frozen=True)
class Shape:
    """What a table in the database looks like.

    Attributes:
        types: column -> its type, without blanks.
        key: names of the sorting key.
    """

    types: dict[str, str]
    key: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The same for the same shape."""
        text = repr((sorted(self.types.items()), self.key))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def evolve(client: Client, database: str, wanted: Iterable[Table]) -> set[str]:
    """Make existing tables fit: add columns, or set a table aside as `<name>__<digest of its shape>`.

    What does not exist is left to be created. Rows set aside belong to definitions that nothing reads any more.

    Returns:
        Names of tables that were set aside.
    """
    aside = set()
    shapes = read_shapes(client, database)
    for table in wanted:
        shape = shapes.get(table.name)
        if shape is None:
            continue
        if fits(table, shape):
            for name, kind in missing(table, shape):
                target = f"{quote(database)}.{quote(table.name)}"
                client.command(f"ALTER TABLE {target} ADD COLUMN IF NOT EXISTS {quote(name)} {kind}")
        else:
            _set_aside(client, database, table, shape)
            aside.add(table.name)
    return aside


def fits(table: Table, shape: Shape) -> bool:
    """Whether the table can take the rows: same key, and each column it shares has the same type."""
    shared = [(name, plain_type(kind)) for name, kind in table.columns if name in shape.types]
    return table.key == shape.key and all(shape.types[name] == kind for name, kind in shared)


def missing(table: Table, shape: Shape) -> list[tuple[str, str]]:
    """Columns, with type and default, that the table has not got."""
    return [(name, kind) for name, kind in table.columns if name not in shape.types]


def plain_type(kind: str) -> str:
    """A column's type without default and blanks."""
    return kind.split(" DEFAULT ", maxsplit=1)[0].replace(" ", "")


def read_shapes(client: Client, database: str) -> dict[str, Shape]:
    """The shapes of a database's tables by name."""
    where = {"database": database}
    columns = client.query(
        "SELECT table, name, type FROM system.columns WHERE database = {database:String}", parameters=where
    ).result_rows
    keys = client.query(
        "SELECT name, sorting_key FROM system.tables WHERE database = {database:String} AND engine LIKE '%MergeTree'",
        parameters=where,
    ).result_rows
    types: dict[str, dict[str, str]] = {}
    for table, name, kind in columns:
        types.setdefault(table, {})[name] = plain_type(kind)
    return {table: Shape(types.get(table, {}), _names(key)) for table, key in keys}


def _names(key: str) -> tuple[str, ...]:
    """The columns of a sorting key; the server leaves the parentheses around a single one."""
    return tuple(name.strip().strip("`") for name in key.removeprefix("(").removesuffix(")").split(","))


def _set_aside(client: Client, database: str, table: Table, shape: Shape) -> None:
    old, aside = (f"{quote(database)}.{quote(name)}" for name in (table.name, f"{table.name}__{shape.digest}"))
    try:
        client.command(f"RENAME TABLE {old} TO {aside}")
    except DatabaseError:
        # another process may have done the same a moment ago; then what stands there now fits, or is not there yet
        now = read_shapes(client, database).get(table.name)
        if now is not None and not fits(table, now):
            raise
