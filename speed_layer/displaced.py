"""Sessions that are no more: rows of an attempt before a failure or a restart that no later attempt takes back.

The merge writes a tombstone where an event that came late makes the start of a session none. Whoever reads the log
again, after a failure or a restart, reads it in other chunks, and may have both events before it publishes anything: it
never saw the session that its forerunner published, and cannot take it back. Its row stays, inside a session that has
the events of both.

That is how it is told, whatever the chunks were. Sessions of a key lie side by side; one that begins inside another
which knows of more events has been displaced by it.
"""

import logging
import time

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from metrics.catalog import Catalog, Metric
from metrics.fold import SESSION_KEY
from speed_layer.panes import EARLY

SWEEP_S = 10.0
_OVERLAP_S = 60
"""Rows written so long before a sweep are looked at by the next one, too."""

logger = logging.getLogger(__name__)


class Sweeper:
    """Takes displaced sessions back, now and then; only what was written since the last time is looked at."""

    def __init__(self, client: Client, catalog: Catalog) -> None:
        self._client = client
        self._metrics = [metric for metric in catalog.metrics if metric.session]
        self._since = 0
        self._again = 0.0

    def sweep_now_and_then(self) -> None:
        """Sweeps if the last time is long enough ago."""
        if time.monotonic() >= self._again:
            self.sweep()

    def sweep(self) -> int:
        """Writes the tombstones that are missing; returns how many.

        Raises:
            ClickHouseError: The server refused.
            OSError: It is away.
        """
        if not self._metrics:
            return 0
        ((now,),) = self._client.query("SELECT toUnixTimestamp(now())").result_rows
        found = sum(take_back(self._client, metric, self._since) for metric in self._metrics)
        if found:
            logger.info("%d sessions of a former attempt have become part of others", found)
        self._since, self._again = int(now) - _OVERLAP_S, time.monotonic() + SWEEP_S
        return found


def take_back(client: Client, metric: Metric, since: int = 0) -> int:
    """Writes a tombstone for each displaced session of a metric; returns how many.

    Args:
        client: A client of the source's database.
        metric: A metric of sessions.
        since: Only sessions near those written after this time, in seconds since the epoch.
    """
    table = quote(f"speed_{metric.name}")
    parameters = {"version": metric.metric_version, "since": since, "most": _reach_ms(metric)}
    ((found,),) = client.query(f"SELECT count() FROM ({_displaced(metric, table)})", parameters=parameters).result_rows
    if not found:
        return 0
    columns = ", ".join(["metric_version", *_named(metric), "chain_events", "is_deleted", "pane"])
    values = ", ".join(["{version:String}", *_named(metric), "chain_events", "1", f"'{EARLY}'"])
    client.command(
        f"INSERT INTO {table} ({columns}) SELECT {values} FROM ({_displaced(metric, table)})", parameters=parameters
    )
    return int(found)


def _named(metric: Metric) -> list[str]:
    return ["window_start", "window_end", "length_ms", *_key(metric)]


def _key(metric: Metric) -> list[str]:
    return [quote(name) for name in (SESSION_KEY, *metric.by)]


def _reach_ms(metric: Metric) -> int:
    """How far a session's start can lie from that of one which has displaced it, in ms."""
    assert metric.session is not None
    return metric.session.max_length_ms + metric.session.gap_ms


def _displaced(metric: Metric, table: str) -> str:
    """SELECT of displaced sessions with the `chain_events` of the chain that they are in now.

    Sessions that overlap are rare; they are found by a window function, and only those are paired.
    """
    key = ", ".join(_key(metric))
    of_version = "metric_version = {version:String}"
    written = f"{of_version} AND written_at >= toDateTime({{since:UInt32}})"
    # no row at all is near nothing
    recent = f"SELECT minOrNull(window_start) FROM {table} WHERE {written}"
    near = f"window_start >= subtractMilliseconds(({recent}), {{most:Int64}})"
    live = (
        f"SELECT window_start, window_end, length_ms, {key}, chain_events,"
        " addMilliseconds(window_start, length_ms) AS last_event\n"
        f"    FROM {table} FINAL WHERE {of_version} AND {near} AND is_deleted = 0"
    )
    before = f"PARTITION BY {key} ORDER BY window_start"
    reached = f"max(last_event) OVER ({before} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    bunched = f"sum(window_start > reached) OVER ({before} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"
    one = "(window_start, last_event, chain_events, window_end, length_ms)"
    inside = "y.1 < x.1 AND x.1 <= y.2 AND y.3 > x.3"
    return (
        "SELECT s.1 AS window_start, s.4 AS window_end, s.5 AS length_ms, "
        f"{key}, arrayMax(y -> if(y.1 < s.1 AND s.1 <= y.2, y.3, 0), bunch) AS chain_events\nFROM (\n"
        f"  SELECT {key}, groupArray({one}) AS bunch\n  FROM (\n"
        f"    SELECT *, {bunched} AS _bunch FROM (SELECT *, {reached} AS reached FROM (\n    {live}))\n"
        f"  )\n  GROUP BY {key}, _bunch HAVING count() > 1\n"
        f") ARRAY JOIN arrayFilter(x -> arrayExists(y -> {inside}, bunch), bunch) AS s"
    )
