"""Runs that nobody is shown: one computed again from its manifest, and one that says what it would change."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from clickhouse_connect.driver.client import Client
from pyspark.sql import SparkSession

from batch_layer.changes import Change, changes
from batch_layer.history import editions
from batch_layer.job import spark_session
from batch_layer.manifest import Plan
from batch_layer.planning import plan_again
from batch_layer.refusals import DayRefusedError
from batch_layer.retention import HeldRun, drop, tables_of_runs
from batch_layer.run import PartitionResult, code_version, compute
from batch_layer.tasks import Told
from infra.clickhouse import connect, query_frame, quote
from infra.settings import Settings
from metrics.catalog import Catalog

Sessions = Callable[[Settings, int], AbstractContextManager[SparkSession]]


class NotRepeatableError(DayRefusedError):
    """A run that cannot be computed again as it was; the text says why."""


@dataclass(frozen=True)
class Repeated:
    """A run, and what its manifest gave when it was computed again.

    Attributes:
        rows: How many the run had, in all tables.
        differing: The tables whose rows are others.
    """

    partition: date
    run_id: str
    rows: int
    differing: tuple[str, ...]


def repeat(
    settings: Settings,
    catalog: Catalog,
    day: date,
    run_id: str | None = None,
    *,
    session_of: Sessions = spark_session,
    told: Told = lambda *_: None,
) -> Repeated:
    """Computes a published run again from the offsets in its manifest, compares all rows, and drops the new ones.

    Args:
        settings: Where Kafka and ClickHouse are.
        catalog: Of the source.
        day: The day.
        run_id: The run; None: the one that the day shows.
        session_of: Opens a Spark session for a number of records.
        told: Told when the day is computed.

    Raises:
        NotRepeatableError: It was a run of another catalog or other code, or its rows are gone.
        DayRefusedError: The log no longer is the one that it read.
        WriteError: The offsets no longer hold what they held.
    """
    client = connect(settings, settings.database(catalog.source))
    manifest = _manifest(client, catalog, day, run_id)
    planned = plan_again(settings, catalog, manifest)
    (again,) = compute(settings, catalog, planned, shown=False, session_of=session_of, told=told)
    try:
        before, after = (_digests(client, day, each) for each in (manifest["run_id"], again.run_id))
    finally:
        _forget(client, [again])
    differing = tuple(sorted(table for table in before if before[table] != after[table]))
    return Repeated(day, manifest["run_id"], sum(rows for rows, _ in before.values()), differing)


def try_out(
    settings: Settings,
    catalog: Catalog,
    planned: Plan,
    *,
    session_of: Sessions = spark_session,
    told: Told = lambda *_: None,
) -> list[Change]:
    """Computes days without showing them to anybody; what that would change of what is published.

    Raises:
        DayRefusedError: The history of a lookup cannot give one of the days.
        WriteError: As of `run`.
    """
    client = connect(settings, settings.database(catalog.source))
    results = compute(settings, catalog, planned, shown=False, session_of=session_of, told=told)
    try:
        runs = {result.partition: result.run_id for result in results}
        return changes(client, catalog, settings.database(catalog.source), runs)
    finally:
        _forget(client, results)


def _forget(client: Client, results: Sequence[PartitionResult]) -> None:
    now = datetime.now(UTC)
    drop(client, [HeldRun(each.partition, each.run_id, now, None, published=False) for each in results])


def _manifest(client: Client, catalog: Catalog, day: date, run_id: str | None) -> Mapping[str, Any]:
    known = {one.run_id: one for one in editions(client, day)}
    wanted = run_id or next((one.run_id for one in known.values() if one.current), None)
    if wanted is None or wanted not in known:
        what = f"run `{wanted}` never published {day}" if wanted else f"{day} was never published"
        msg = f"{what}. `lockstep publish list` has the runs of a day"
        raise NotRepeatableError(msg)
    if not known[wanted].kept:
        msg = f"the rows of run `{wanted}` are gone, so there is nothing to compare with: it was replaced long ago"
        raise NotRepeatableError(msg)
    sql = (
        "SELECT manifest FROM batch_runs WHERE partition = {day:Date} AND run_id = {run:String} AND status = 'complete'"
    )
    manifest: dict[str, Any] = json.loads(query_frame(client, sql, {"day": day, "run": wanted})["manifest"][0])
    for what, then, now in (
        ("catalog", manifest["catalog_version"], catalog.version),
        ("code", manifest["code_version"], code_version()),
    ):
        if then != now:
            msg = f"run `{wanted}` was of {what} version `{then}`, and this is `{now}`: other bytes would prove nothing"
            raise NotRepeatableError(msg)
    return manifest


def _digests(client: Client, day: date, run_id: str) -> dict[str, tuple[int, int]]:
    """By table the number of rows that a run wrote of a day, and a hash of their bytes in any order."""
    found = {}
    for table in tables_of_runs(client):
        sql = (
            "SELECT count() AS n, sum(cityHash64(formatRow('RowBinary', * EXCEPT (run_id)))) AS digest "
            f"FROM {quote(table)} WHERE partition = {{day:Date}} AND run_id = {{run:String}}"
        )
        (row,) = query_frame(client, sql, {"day": day, "run": run_id}).rows()
        found[table] = (row[0], row[1])
    return found
