"""Writing to ClickHouse from a worker: Arrow batches with deduplication tokens, and patience.

Every row is replaceable by its key, so a batch may be written again; the token only saves the work. A server that is
away is waited for: the bundle waits, Flink holds back the log, and nothing is lost.
"""

import logging
import time

import polars as pl
import xxhash
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from infra.clickhouse import ClickHouseUnavailableError, connect, insert_frame
from infra.settings import Settings
from metrics.catalog import Catalog
from speed_layer.partials import to_ipc

_RETRY_S = 0.5
_GIVE_UP_ON = ("UNKNOWN_TABLE", "NO_SUCH_COLUMN_IN_TABLE", "THERE_IS_NO_COLUMN", "TYPE_MISMATCH", "UNKNOWN_DATABASE")

logger = logging.getLogger(__name__)


def as_time(column: str) -> pl.Expr:
    """A column of milliseconds as a UTC time."""
    return pl.col(column).cast(pl.Datetime("ms", "UTC"))


class TableWriter:
    """Inserts frames into the tables of a source's database; connects on first use."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._database = settings.database(catalog.source)
        self._client: Client | None = None

    def insert(self, table: str, rows: pl.DataFrame, *, repeat: bool = False) -> None:
        """Inserts rows; returns once they are stored, however long the server is away.

        Args:
            table: Name as it stands in SQL.
            rows: Columns as the table's.
            repeat: Whether the same rows may be meant again later, so that no token must drop them.

        Raises:
            ClickHouseError: The server refuses the rows for what they are.
        """
        if rows.is_empty():
            return
        token = None if repeat else f"{table}:{xxhash.xxh3_128_hexdigest(to_ipc(rows))}"
        while True:
            try:
                if self._client is None:
                    self._client = connect(self._settings, self._database)
                insert_frame(self._client, table, rows, token)
                return
            except (ClickHouseError, ClickHouseUnavailableError, OSError) as error:
                if any(word in str(error) for word in _GIVE_UP_ON):
                    raise
                logger.warning("cannot write to %s: %s; waiting", table, error)
                self._client = None
                time.sleep(_RETRY_S)
