"""ClickHouse for everything above: connect, read and write polars frames, quote names.

Nothing here knows whether the server is a real one or the embedded engine.
"""

import socket
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import polars as pl
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import OperationalError
from clickhouse_connect.driver.httputil import get_pool_manager
from urllib3 import PoolManager

from infra.settings import Settings

_WAIT_STEP_S = 0.1


class ClickHouseUnavailableError(ConnectionError):
    """No ClickHouse answered at the configured address in the time allowed."""


def connect(
    settings: Settings,
    database: str | None = None,
    *,
    wait_seconds: float = 30.0,
    options: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Client:
    """Connect over HTTP; a server that is away is waited for.

    The client keeps no session, so threads may share it. Its inserts are synchronous: what has returned is readable.

    Args:
        settings: where the server is.
        database: current database; None for the server's default.
        wait_seconds: how long to wait for a server that does not answer.
        options: more ClickHouse settings for every statement, such as `{"readonly": 1}`.
        clock: seconds that only grow.
        sleep: waits for some seconds.

    Raises:
        ClickHouseUnavailableError: nothing answered in time.
        clickhouse_connect.driver.exceptions.DatabaseError: it answered and refused.
    """
    deadline = clock() + wait_seconds
    while True:
        try:
            if _answers(settings):
                return _client(settings, database or "default", options or {})
        except OperationalError:  # it went away between the two: a server that is being restarted
            pass
        if clock() >= deadline:
            raise ClickHouseUnavailableError(_away_text(settings, wait_seconds))
        sleep(_WAIT_STEP_S)


def _client(settings: Settings, database: str, options: Mapping[str, Any]) -> Client:
    return clickhouse_connect.get_client(
        dsn=settings.clickhouse_address,
        username=settings.clickhouse_user,
        password=settings.clickhouse_password,
        database=database,
        # async_insert=0: later reads of the same process must see what was inserted.
        settings={"async_insert": 0, **options},
        autogenerate_session_id=False,
        tz_mode="aware",
        pool_mgr=None if settings.clickhouse_url else _loopback_pool(),
        # Loopback gains nothing from compression, and the CPU is better spent elsewhere.
        compress=settings.clickhouse_url is not None,
        send_receive_timeout=600,
    )


@cache
def _loopback_pool() -> PoolManager:
    """Connections to the local server: never through a proxy that the environment names."""
    pool: PoolManager = get_pool_manager(maxsize=16)
    return pool


def insert_frame(client: Client, table: str, frame: pl.DataFrame, token: str | None = None) -> int:
    """Insert a frame's rows into the columns of the same names, as Arrow; returns the number of rows.

    Columns of type `List(Struct({key, value}))` arrive as ClickHouse maps. Strings arrive as strings; times must be
    `Datetime` with the column's unit and zone `UTC`. An empty frame sends nothing.

    Args:
        client: from `connect`.
        table: table name as it stands in SQL: `name` or `database.name`, each part quoted by `quote` where needed.
        frame: the rows.
        token: insert deduplication token: a block repeated with the same token, within the table's deduplication
            window, is dropped. Do not rely on it alone: make rows replaceable by key. None: always inserted.
    """
    if frame.is_empty():
        return 0
    # Without a token the server would take the rows for one, and drop those that are meant a second time.
    # One thread: most inserts are small, and to hand them round costs a tenth of the whole.
    options = {"insert_deduplication_token": token or uuid.uuid4().hex, "max_threads": 1}
    client.insert_arrow(table, arrow_of(frame), settings=options)
    return frame.height


def query_frame(client: Client, sql: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Run a query; one polars column per result column.

    Decimals stay decimals; `DateTime64` comes back as `Datetime` in UTC; `Date` as `Date`; a map as
    `List(Struct({key, value}))`; a low-cardinality string as `String`.

    Args:
        client: from `connect`.
        sql: one query without FORMAT; placeholders are written `{name:Type}`.
        parameters: their values.
    """
    options = {
        "output_format_arrow_string_as_string": 1,
        # Dictionaries would differ between batches; plain strings concatenate.
        "output_format_arrow_low_cardinality_as_dictionary": 0,
    }
    table = client.query_arrow(sql, parameters=dict(parameters or {}), settings=options)
    frame = pl.from_arrow(_plain(table))
    assert isinstance(frame, pl.DataFrame)
    return frame


def quote(identifier: str) -> str:
    """A name in backquotes, safe in SQL."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"


def arrow_of(frame: pl.DataFrame) -> pa.Table:
    """The frame as an Arrow table that ClickHouse reads: maps for key-value lists, no view types."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    columns = [_as_map(column) if _is_entries(column.type) else column for column in table.columns]
    return pa.table(dict(zip(table.column_names, columns, strict=True)))


def _is_entries(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    entry = kind.value_type
    return pa.types.is_struct(entry) and [field.name for field in entry] == ["key", "value"]


def _as_map(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    array = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    entries = array.flatten()
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array([0, *lengths.cumsum().tolist()], pa.int32())
    return pa.MapArray.from_arrays(offsets, entries.field("key"), entries.field("value"))


def _plain(table: pa.Table) -> pa.Table:
    """Arrow maps as lists of structs, which polars has."""
    for index, field in enumerate(table.schema):
        if pa.types.is_map(field.type):
            entry = pa.struct([("key", field.type.key_type), ("value", field.type.item_type)])
            table = table.set_column(index, field.name, table.column(index).cast(pa.list_(entry)))
    return table


def _answers(settings: Settings) -> bool:
    """Whether something accepts connections at the server's address."""
    address = urlsplit(settings.clickhouse_address)
    port = address.port or (443 if address.scheme == "https" else 8123)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=5):
            return True
    except OSError:
        return False


def _away_text(settings: Settings, waited: float) -> str:
    way_out = "check `LOCKSTEP_CLICKHOUSE_URL`" if settings.clickhouse_url else "start the stack with `lockstep up`"
    return f"no ClickHouse answered at `{settings.clickhouse_address}` within {waited:g} s. {way_out}"
