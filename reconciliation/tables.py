"""Reads a source's own tables: publications, manifests, positions, ledger, counts and exceptions, as frozen values."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from infra.clickhouse import quote
from metrics.catalog import Catalog, Metric
from metrics.window import Window, to_epoch_ms
from reconciliation.certificate import Counts
from reconciliation.diff import Query
from reconciliation.evidence import (
    LedgerBlock,
    Manifest,
    ManifestError,
    OffsetRange,
    Position,
    Progress,
    Publication,
    read_manifest,
)
from serving.readings import is_of

LARGEST_EXCEPTIONS = 100_000
"""Records that one report names per day; beyond that it says how many there are."""


@dataclass(frozen=True)
class ExceptionCount:
    """How many records of a day were not counted under one disposition and reason, and how many were repaired."""

    disposition: str
    reason: str
    records: int
    repaired: int = 0


@dataclass(frozen=True)
class ExceptionRecord:
    """One record that was not counted; a dead letter has no event id and no event time.

    Attributes:
        repaired_offset: where, in its topic partition, a dead letter was produced again after a fix; None for others.
    """

    topic: str
    topic_partition: int
    offset: int
    record_time: datetime
    event_id: str | None
    event_time: datetime | None
    disposition: str
    reason: str
    repaired_offset: int | None = None


@dataclass(frozen=True)
class ExceptionAgreement:
    """Records that the layers left out: alike, or known to one of them alone under that disposition."""

    both: int
    only_batch: int
    only_speed: int


@dataclass(frozen=True)
class Issued:
    """A certificate as it was written."""

    run_id: str
    certified: bool
    verdict: str
    residual: int
    fingerprint: str
    issued_at: datetime


def exists(query: Query, database: str) -> bool:
    """Whether the source has a database yet."""
    found = query("SELECT count() AS n FROM system.databases WHERE name = {name:String}", {"name": database})
    return bool(found.item())


def publication(query: Query, database: str, day: date) -> Publication | None:
    """What the day currently shows, or None before its first publication."""
    rows = query(
        "SELECT argMax(run_id, published_at) AS run, argMax(metric_versions, published_at) AS versions,"
        f" max(published_at) AS at FROM {_table(database, 'publications')} AS p"
        " WHERE p.partition = toDate({day:String}) HAVING count() > 0",
        {"day": day.isoformat()},
    )
    if rows.is_empty():
        return None
    row = rows.row(0, named=True)
    return Publication(day, row["run"], tuple(row["versions"]), row["at"])


def manifest(query: Query, database: str, day: date, run_id: str) -> Manifest:
    """The manifest with which the run completed.

    Raises:
        ManifestError: the run is published and has no readable manifest.
    """
    rows = query(
        f"SELECT argMax(manifest, at) AS text FROM {_table(database, 'batch_runs')} AS r"
        " WHERE r.partition = toDate({day:String}) AND run_id = {run_id:String} AND status = 'complete'"
        " HAVING count() > 0",
        {"day": day.isoformat(), "run_id": run_id},
    )
    if rows.is_empty():
        message = (
            f"run `{run_id}` is published for {day} and has no completed entry in `batch_runs`. run"
            f" `lockstep batch --from {day} --to {day}` to publish the day again"
        )
        raise ManifestError(message)
    return read_manifest(run_id, rows.item())


def progress(query: Query, database: str, topic: str) -> Progress:
    """How far the speed layer has published each topic partition."""
    rows = query(
        f"SELECT topic_partition, watermark, next_offset, at FROM {_table(database, 'watermarks')} FINAL"
        " WHERE topic = {topic:String}",
        {"topic": topic},
    )
    return Progress({row["topic_partition"]: Position(**row) for row in rows.iter_rows(named=True)})


def ledger(query: Query, database: str, topic: str) -> tuple[LedgerBlock, ...]:
    """The speed layer's counts per block of offsets."""
    rows = query(
        f"SELECT topic_partition, block, records, counted FROM {_table(database, 'ledger')} FINAL"
        " WHERE topic = {topic:String} ORDER BY topic_partition, block",
        {"topic": topic},
    )
    return tuple(LedgerBlock(**row) for row in rows.iter_rows(named=True))


def counting_metric(catalog: Catalog, versions: Iterable[str]) -> Metric | None:
    """The first count metric without a filter that a run computed: its slices hold every event once.

    Sessions are no such slices: a day holds those that end in it, whole.
    """
    computed = set(versions)
    candidates = (
        metric
        for metric in catalog.metrics
        if metric.agg.name == "count" and metric.where is None and metric.session is None
    )
    return next((metric for metric in candidates if metric.metric_version in computed), None)


def counts(query: Query, database: str, day: date, run_id: str, metric: Metric) -> Counts:
    """Events added up from a count metric's rows: exact, expected and published states."""
    window = Window.of_day(day)
    of_run = "metric_version = {version:String} AND run_id = {run_id:String} AND partition = toDate({day:String})"
    rows = query(
        "SELECT toInt64(sum(e.exact)) AS exact, toInt64(sum(e.expected)) AS expected,"
        " toInt64(sum(e.published)) AS published FROM (\n"
        "SELECT sum(events) AS exact, toUInt64(0) AS expected, toUInt64(0) AS published"
        f" FROM {_table(database, f'batch_{metric.name}')} WHERE {of_run} AND {is_of('exact', 'reading')}\nUNION ALL\n"
        f"SELECT 0, sum(events), 0 FROM {_table(database, f'expected_{metric.name}')} WHERE {of_run}\nUNION ALL\n"
        f"SELECT 0, 0, sum(events) FROM {_table(database, f'speed_{metric.name}')} FINAL"
        " WHERE metric_version = {version:String}"
        " AND slice_start >= fromUnixTimestamp64Milli({start:Int64}, 'UTC')"
        " AND slice_start < fromUnixTimestamp64Milli({end:Int64}, 'UTC')\n) AS e",
        {
            "version": metric.metric_version,
            "run_id": run_id,
            "day": day.isoformat(),
            "start": to_epoch_ms(window.start),
            "end": to_epoch_ms(window.end),
        },
    )
    row = rows.row(0, named=True)
    return Counts(metric.name, row["exact"], row["expected"], row["published"])


def exception_counts(query: Query, database: str, day: date, run_id: str) -> tuple[ExceptionCount, ...]:
    """Records of the day that the run did not count, per disposition and reason."""
    rows = query(
        f"SELECT disposition, reason, count() AS records, count(repaired_offset) AS repaired"
        f" FROM {_table(database, 'batch_exceptions')}"
        f" WHERE {_OF_RUN} GROUP BY disposition, reason ORDER BY disposition, records DESC, reason",
        {"day": day.isoformat(), "run_id": run_id},
    )
    return tuple(ExceptionCount(**row) for row in rows.iter_rows(named=True))


def exception_records(query: Query, database: str, day: date, run_id: str) -> tuple[ExceptionRecord, ...]:
    """The day's records that the run did not count, by place in the log, up to `LARGEST_EXCEPTIONS`."""
    rows = query(
        "SELECT topic, topic_partition, offset, record_time, event_id, event_time, disposition, reason, repaired_offset"
        f" FROM {_table(database, 'batch_exceptions')} WHERE {_OF_RUN}"
        f" ORDER BY topic, topic_partition, offset LIMIT {LARGEST_EXCEPTIONS}",
        {"day": day.isoformat(), "run_id": run_id},
    )
    return tuple(ExceptionRecord(**row) for row in rows.iter_rows(named=True))


def exception_agreement(query: Query, database: str, day: date, read: Manifest) -> ExceptionAgreement:
    """Compare what both layers left out of the day, within the offsets that the run read."""
    theirs = "toDate(coalesce(event_time, record_time)) = toDate({day:String}) AND topic = {topic:String}"
    rows = query(
        "SELECT countIf(batch AND speed) AS both, countIf(batch AND NOT speed) AS only_batch,"
        " countIf(speed AND NOT batch) AS only_speed FROM (\n"
        "SELECT countIf(side = 'batch') > 0 AS batch, countIf(side = 'speed') > 0 AS speed FROM (\n"
        f"SELECT 'batch' AS side, topic_partition, offset, disposition FROM {_table(database, 'batch_exceptions')}"
        f" WHERE {_OF_RUN}\nUNION ALL\n"
        f"SELECT 'speed' AS side, topic_partition, offset, disposition FROM {_table(database, 'exceptions')} FINAL"
        f" WHERE {theirs} AND ({_within(read.ranges)})\n) GROUP BY topic_partition, offset, disposition)",
        {"day": day.isoformat(), "run_id": read.run_id, "topic": read.topic},
    )
    return ExceptionAgreement(**rows.row(0, named=True))


def last_certificate(query: Query, database: str, day: date) -> Issued | None:
    """The latest certificate of the day, or None before the first."""
    rows = query(
        "SELECT run_id, certified, toString(verdict) AS verdict, residual,"
        " JSONExtractString(evidence, 'fingerprint') AS fingerprint, issued_at"
        f" FROM {_table(database, 'certificates')} WHERE partition = toDate({{day:String}})"
        " ORDER BY issued_at DESC LIMIT 1",
        {"day": day.isoformat()},
    )
    return Issued(**rows.row(0, named=True)) if not rows.is_empty() else None


_OF_RUN = "partition = toDate({day:String}) AND run_id = {run_id:String}"


def _within(ranges: tuple[OffsetRange, ...]) -> str:
    """A condition on `topic_partition` and `offset`; no range holds nothing."""
    clauses = [
        f"(topic_partition = {read.topic_partition:d} AND offset >= {read.start:d} AND offset < {read.end:d})"
        for read in ranges
    ]
    return " OR ".join(clauses) or "false"


def _table(database: str, name: str) -> str:
    return f"{quote(database)}.{quote(name)}"
