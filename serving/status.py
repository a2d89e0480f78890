"""How far a source's data has come: watermark, what was read, published and certified days, and what is amiss."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from infra.clickhouse import quote
from serving.query import iso

ALARMS_SHOWN_H = 24
"""An alarm of very many dimension values is shown so long after it was raised."""

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
    """The latest alarm of a group of metrics whose slices have very many rows.

    Attributes:
        metrics: their names.
        dimension: the one with the most distinct values.
        rows: about how many rows the slice has.
        slice_start: of that slice.
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
class Status:
    """The state of one source, read at one moment.

    Attributes:
        watermark: the least data watermark of its topic partitions; None before the speed layer has published.
        watermark_age_s: seconds from the watermark to now; None likewise. Grows while no events come.
        published_at: when the speed layer last reported its progress; None likewise.
        freshness_s: seconds since then; None likewise.
        days: published days, oldest first.
        ledger: records read by the speed layer and their dispositions.
        alarms: of very many dimension values, by group of metrics, latest first.
    """

    watermark: datetime | None
    watermark_age_s: float | None
    published_at: datetime | None
    freshness_s: float | None
    days: tuple[Day, ...]
    ledger: dict[str, int]
    alarms: tuple[Crowd, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The status as the API prints it."""
        return {
            "watermark": None if self.watermark is None else iso(self.watermark),
            "watermark_age_seconds": self.watermark_age_s,
            "published_at": None if self.published_at is None else iso(self.published_at),
            "freshness_seconds": self.freshness_s,
            "partitions": [day.as_json() for day in self.days],
            "ledger": self.ledger,
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
        f"FROM {name}.speed_alarms AS a FINAL WHERE a.at > now64(3) - toIntervalHour({ALARMS_SHOWN_H})\n"
        "ORDER BY a.at DESC, a.slice_start DESC LIMIT 1 BY a.group_id"
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
    )
