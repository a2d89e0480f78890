"""Runs that nobody can ask for any more: their rows are dropped whole, and what they were stays on record."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import polars as pl
from clickhouse_connect.driver.client import Client

from batch_layer.history import DROPPED
from infra.clickhouse import insert_frame, query_frame, quote
from serving.days import text

UNPUBLISHED_FOR = timedelta(days=1)
"""How long rows of a run are kept that was never published: it may still be under way."""


@dataclass(frozen=True)
class HeldRun:
    """A run of a day that still has its rows.

    Attributes:
        at: When it was last heard of.
        shown_until: When another run took its place; None: it is shown, or was never published.
        published: Whether it ever was.
    """

    partition: date
    run_id: str
    at: datetime
    shown_until: datetime | None
    published: bool


def outdated(runs: Sequence[HeldRun], keep: timedelta, now: datetime) -> list[HeldRun]:
    """The runs to drop.

    Args:
        runs: Those that have their rows.
        keep: How long a run is kept that another has replaced.
        now: The time.
    """
    return [
        one
        for one in runs
        if (one.shown_until is not None and now - one.shown_until > keep)
        or (not one.published and now - one.at > UNPUBLISHED_FOR)
    ]


def held(client: Client) -> list[HeldRun]:
    """The runs that still have their rows."""
    sql = (
        "SELECT r.partition AS partition, r.run_id AS run_id, max(r.at) AS at, "
        "any(p.runs) AS runs, any(p.times) AS times FROM batch_runs AS r LEFT JOIN ("
        "SELECT partition, groupArray(run_id) AS runs, groupArray(published_at) AS times FROM ("
        "SELECT * FROM publications ORDER BY published_at) GROUP BY partition) AS p ON r.partition = p.partition "
        "GROUP BY r.partition, r.run_id HAVING countIf(r.status = {dropped:String}) = 0"
    )
    found = []
    for row in query_frame(client, sql, {"dropped": DROPPED}).to_dicts():
        runs, times = row["runs"], row["times"]
        last = max((n for n, run_id in enumerate(runs) if run_id == row["run_id"]), default=None)
        until = times[last + 1] if last is not None and last + 1 < len(times) else None
        found.append(HeldRun(row["partition"], row["run_id"], row["at"], until, published=last is not None))
    return found


def tables_of_runs(client: Client) -> list[str]:
    """The tables in which each run of a day is a partition."""
    sql = "SELECT name FROM system.tables WHERE database = currentDatabase() AND partition_key = '(partition, run_id)'"
    return sorted(query_frame(client, sql)["name"].to_list())


def drop(client: Client, runs: Sequence[HeldRun]) -> None:
    """Drops all rows of some runs; that they were there stays in `batch_runs` and `publications`."""
    tables = tables_of_runs(client)
    for one in runs:
        for table in tables:
            client.command(
                f"ALTER TABLE {quote(table)} DROP PARTITION ({text(str(one.partition))}, {text(one.run_id)})"
            )
        gone = pl.DataFrame([{"partition": one.partition, "run_id": one.run_id, "status": DROPPED}])
        insert_frame(client, "batch_runs", gone)


def prune(client: Client, keep: timedelta, now: datetime) -> list[HeldRun]:
    """Drops what is outdated; returns it.

    Args:
        client: Of the source's database.
        keep: How long a run is kept that another has replaced.
        now: The time.
    """
    runs = outdated(held(client), keep, now)
    drop(client, runs)
    return runs
