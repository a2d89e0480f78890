"""How far a source's data has come: watermark, what was read, published and certified days, and what is amiss."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from serving.query import iso

ALARMS_SHOWN_H = 24
"""An alarm of very many dimension values is shown so long after it was raised."""

LEDGER_ALARM = "ledger"
"""The `group_id` of the alarm that the ledger does not close; shown as long as it has a text."""

LEDGER_COLUMNS = ("records", "counted", "late", "duplicate", "id_conflict", "dead_letter")


@dataclass(frozen=True)
class Day:
    """A UTC day that the batch layer has published.

    Attributes:
        partition: the day.
        run_id: the run that is published now.
        published_at: since when.
        certified: whether its latest certificate, for this run, says so.
        verdict: of that certificate; empty without one.
        residual: slices that speed has wrong, by that certificate.
    """

    partition: date
    run_id: str
    published_at: datetime
    certified: bool
    verdict: str
    residual: int

    def as_json(self) -> dict[str, Any]:
        """The day as the API prints it."""
        return {
            "partition": iso(self.partition),
            "run_id": self.run_id,
            "published_at": iso(self.published_at),
            "certified": self.certified,
            "verdict": self.verdict or None,
            "residual": self.residual,
        }


@dataclass(frozen=True)
class Crowd:
    """The latest alarm of a group of metrics whose slices have very many rows, or that the ledger does not close.

    Attributes:
        metrics: their names.
        dimension: the one with the most distinct values; empty where it is the ledger's.
        rows: about how many rows the slice has.
        slice_start: of that slice; of the ledger, since when.
        at: when the alarm was raised.
        text: what to tell a reader.
    """

    metrics: tuple[str, ...]
    dimension: str
    rows: int
    slice_start: datetime
    at: datetime
    text: str

    def as_json(self) -> dict[str, Any]:
        """The alarm as the API prints it."""
        return {
            "metrics": list(self.metrics),
            "dimension": self.dimension,
            "rows": self.rows,
            "slice_start": iso(self.slice_start),
            "at": iso(self.at),
            "text": self.text,
        }


@dataclass(frozen=True)
class LedgerCheck:
    """Whether the ledger closes: it covers the log, and counts the events of the published rows.

    Attributes:
        closes: what the latest look found.
        since: since when.
        checked_at: when that was.
        counted: events that the ledger counts.
        published: events in the rows of a metric that takes all of them; None where the catalog has none.
        unread: blocks with fewer records than offsets that have not been read again yet.
        text: what to tell a reader; empty if it closes.
    """

    closes: bool
    since: datetime
    checked_at: datetime
    counted: int
    published: int | None
    unread: int
    text: str

    def as_json(self) -> dict[str, Any]:
        """The check as the API prints it."""
        return {
            "closes": self.closes,
            "since": iso(self.since),
            "checked_at": iso(self.checked_at),
            "counted": self.counted,
            "published": self.published,
            "unread_blocks": self.unread,
            "text": self.text or None,
        }


@dataclass(frozen=True)
class PartitionLag:
    """How far a topic partition is behind.

    Attributes:
        topic_partition: its number.
        lag_offsets: offsets of the log that are not published.
        lag_ms: from the latest published record to the latest of the log, by their timestamps; None before the first.
        skew_ms: of its watermark, behind the greatest of all partitions; None before it has one.
        at: when that was.
    """

    topic_partition: int
    lag_offsets: int
    lag_ms: int | None
    skew_ms: int | None
    at: datetime

    def as_json(self) -> dict[str, Any]:
        """The lag as the API prints it."""
        return {
            "topic_partition": self.topic_partition,
            "lag_offsets": self.lag_offsets,
            "lag_seconds": None if self.lag_ms is None else self.lag_ms / 1000,
            "skew_seconds": None if self.skew_ms is None else self.skew_ms / 1000,
            "at": iso(self.at),
        }


@dataclass(frozen=True)
class Status:
    """The state of one source, read at one moment.

    Attributes:
        watermark: the least data watermark of its topic partitions; None before the speed layer has published.
        watermark_age_s: seconds from the watermark to now; None likewise. Grows while no events come.
        published_at: when the speed layer last reported its progress; None likewise.
        freshness_s: seconds since then; None likewise.
        days: published days, oldest first.
        ledger: records read by the speed layer and their dispositions.
        alarms: of very many dimension values, by group of metrics, latest first; and that the ledger does not close.
        check: whether the ledger closes; None before the speed layer has looked.
        lags: of the topic partitions, by number.
    """

    watermark: datetime | None
    watermark_age_s: float | None
    published_at: datetime | None
    freshness_s: float | None
    days: tuple[Day, ...]
    ledger: dict[str, int]
    alarms: tuple[Crowd, ...] = ()
    check: LedgerCheck | None = None
    lags: tuple[PartitionLag, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The status as the API prints it."""
        return {
            "watermark": None if self.watermark is None else iso(self.watermark),
            "watermark_age_seconds": self.watermark_age_s,
            "published_at": None if self.published_at is None else iso(self.published_at),
            "freshness_seconds": self.freshness_s,
            "partitions": [day.as_json() for day in self.days],
            "ledger": self.ledger,
            "ledger_check": None if self.check is None else self.check.as_json(),
            "lag": [lag.as_json() for lag in self.lags],
            "alarms": [alarm.as_json() for alarm in self.alarms],
        }


def read_status(client: Client, database: str) -> Status:
    """Read the status. Ages are taken by ClickHouse's clock, which also stamped the rows."""
    name = quote(database)
    (progress,) = client.query(
        f"SELECT count(), min(watermark), max(at), date_diff('millisecond', min(watermark), now64(3)),"
        f" date_diff('millisecond', max(at), now64(3)) FROM {name}.watermarks FINAL"
    ).result_rows
    (ledger,) = client.query(
        f"SELECT {', '.join(f'sum({column})' for column in LEDGER_COLUMNS)} FROM {name}.ledger FINAL"
    ).result_rows
    days = client.query(
        "SELECT d.partition, d.run_id, d.published_at, k.certified, k.verdict, k.residual\n"
        "FROM (SELECT p.partition AS partition, argMax(p.run_id, p.published_at) AS run_id,"
        f" max(p.published_at) AS published_at FROM {name}.publications AS p GROUP BY p.partition) AS d\n"
        "LEFT JOIN (SELECT c.partition AS partition, c.run_id AS run_id, argMax(c.certified, c.issued_at) AS certified,"
        " argMax(c.verdict, c.issued_at) AS verdict, argMax(c.residual, c.issued_at) AS residual"
        f" FROM {name}.certificates AS c GROUP BY c.partition, c.run_id) AS k\n"
        "ON d.partition = k.partition AND d.run_id = k.run_id\nORDER BY d.partition"
    ).result_rows
    alarms = client.query(
        "SELECT a.metrics, a.dimension, a.rows, a.slice_start, a.at, a.text\n"
        f"FROM {name}.speed_alarms AS a FINAL WHERE if(a.group_id = {{ledger:String}}, a.text != '',"
        f" a.at > now64(3) - toIntervalHour({ALARMS_SHOWN_H}))\n"
        "ORDER BY a.at DESC, a.slice_start DESC LIMIT 1 BY a.group_id",
        parameters={"ledger": LEDGER_ALARM},
    ).result_rows
    checks = client.query(
        f"SELECT closes, since, at, counted, published, unread, text FROM {name}.ledger_checks FINAL ORDER BY at DESC"
    ).result_rows
    lags = client.query(
        "SELECT topic_partition, lag_offsets, lag_ms, skew_ms, at"
        f" FROM {name}.partition_lags FINAL ORDER BY topic_partition"
    ).result_rows
    partitions, watermark, published_at, watermark_age_ms, freshness_ms = progress
    known = partitions > 0
    return Status(
        watermark if known else None,
        watermark_age_ms / 1000 if known else None,
        published_at if known else None,
        max(0.0, freshness_ms / 1000) if known else None,
        tuple(
            Day(day, run, at, bool(certified), verdict, residual) for day, run, at, certified, verdict, residual in days
        ),
        dict(zip(LEDGER_COLUMNS, ledger, strict=True)),
        tuple(Crowd(tuple(metrics), *others) for metrics, *others in alarms),
        LedgerCheck(*checks[0]) if checks else None,
        tuple(PartitionLag(*row) for row in lags),
    )
