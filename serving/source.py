"""One source as its readers see it: the catalog, its database and a client that may only read."""

import threading
from datetime import datetime

from clickhouse_connect.driver.client import Client

from infra.clickhouse import connect, quote
from infra.settings import Settings
from metrics.catalog import Catalog, ShownMetric
from serving.query import Query, Row, rows
from serving.status import Status, read_status

# The server refuses every statement that writes; 2, unlike 1, lets a reader choose output formats.
READ_ONLY = {"readonly": 2}


class Source:
    """Reads a source's views; threads may share it. Connects on first use; a server that comes back is used again."""

    def __init__(self, settings: Settings, catalog: Catalog, *, wait_seconds: float = 0.0) -> None:
        self.catalog = catalog
        self.database = settings.database(catalog.source)
        self._settings = settings
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._client: Client | None = None

    @property
    def address(self) -> str:
        """Where ClickHouse is."""
        return self._settings.clickhouse_address

    @property
    def client(self) -> Client:
        """A client that may only read.

        Raises:
            ClickHouseUnavailableError: nothing answers.
        """
        with self._lock:
            if self._client is None:
                self._client = connect(self._settings, wait_seconds=self._wait_seconds, options=READ_ONLY)
            return self._client

    def rows(self, query: Query) -> list[Row]:
        """The rows of a query."""
        return rows(self.client, self.database, query)

    def status(self) -> Status:
        """The source's status."""
        return read_status(self.client, self.database)

    def latest(self, metric: ShownMetric) -> datetime | None:
        """Start of the latest slice or session that either layer has of the metric; None before there is any."""
        column = "window_start" if metric.session else "slice_start"
        parts = [
            f"SELECT max({column}) AS latest, count() AS n FROM {quote(self.database)}.{quote(layer + operand.name)}"
            f" WHERE metric_version = {{version_{index}:String}}"
            for index, operand in enumerate(metric.operands)
            for layer in ("speed_", "batch_")
        ]
        versions = {f"version_{index}": version for index, version in enumerate(metric.versions)}
        sql = f"SELECT max(latest), sum(n) FROM ({' UNION ALL '.join(parts)})"
        ((latest, found),) = self.client.query(sql, parameters=versions).result_rows
        return latest if found else None
