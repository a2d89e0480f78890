"""What a run has found of its days, by what became of it, and whether that is what the index of the log counts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from batch_layer.copies import with_exact
from batch_layer.manifest import Indexed, Plan
from batch_layer.publish import WriteError
from batch_layer.rows import EPOCH, arrow_schema, ddl, from_bytes, to_batches
from metrics.disposition import DEAD_LETTER, DISPOSITIONS, ID_CONFLICT
from metrics.window import DAY_MS

COUNTS = {"day": "int", "disposition": "string", "records": "bigint", "events": "bigint", "checksum": "bigint"}
"""Spark types of counts: records and exact events of a day and disposition, and the XOR of the latter's hashes."""


@dataclass(frozen=True)
class Day:
    """Counts of one day: records per disposition, and `events`, those in the exact values.

    `checksum` is of the ids and times of `events`, in any order.
    """

    dispositions: dict[str, int]
    events: int
    checksum: int = 0

    @property
    def copies(self) -> int:
        """Well-formed events that repeat another."""
        formed = sum(count for name, count in self.dispositions.items() if name not in {DEAD_LETTER, ID_CONFLICT})
        return formed - self.events


@dataclass(frozen=True)
class _Counted:
    """Counts events by day and disposition; for `mapInArrow` over payloads of whole days."""

    copies: pl.Series

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for day, payload in zip(batch["day"].to_pylist(), batch["payload"], strict=True):
                events = with_exact(from_bytes(payload.as_py()), self.copies)
                checksum = pl.col("identity").filter("exact").bitwise_xor().fill_null(0)
                counts = events.group_by("disposition").agg(
                    records=pl.len().cast(pl.Int64),
                    events=pl.col("exact").sum().cast(pl.Int64),
                    checksum=checksum.reinterpret(signed=True),
                )
                yield from to_batches(counts.with_columns(day=pl.lit(day)), arrow_schema(COUNTS))


def counts_by_day(events: DataFrame, dead: DataFrame, copies: pl.Series, days: Iterable[date]) -> dict[date, Day]:
    """Counts per day, for every day asked for.

    Args:
        events: Payloads of the days' events, with the column `day`.
        dead: The days' dead letters, with record_time and disposition.
        copies: See `copies.find_copies`.
        days: The days.
    """
    of_events = events.mapInArrow(_Counted(copies), ddl(COUNTS))
    of_dead = dead.select(
        F.expr(f"CAST(floor(record_time / {DAY_MS}) AS int)").alias("day"),
        "disposition",
        F.lit(1).cast("bigint").alias("records"),
        F.lit(0).cast("bigint").alias("events"),
        F.lit(0).cast("bigint").alias("checksum"),
    )
    days = [*days]
    dispositions = {day: dict.fromkeys(DISPOSITIONS, 0) for day in days}
    exact, checksums = dict.fromkeys(days, 0), dict.fromkeys(days, 0)
    for row in of_events.unionByName(of_dead).collect():
        day = EPOCH + timedelta(days=row.day)
        dispositions[day][row.disposition] += row.records
        exact[day] += row.events
        checksums[day] ^= row.checksum
    return {day: Day(dispositions[day], exact[day], checksums[day]) for day in days}


def check_complete(planned: Plan, counts: Mapping[date, Day]) -> None:
    """Compares what a run has read of its days with what the index of the log, another reader, has counted.

    Raises:
        WriteError: They differ.
    """
    for day, found in counts.items():
        dead = found.dispositions[DEAD_LETTER]
        read = Indexed(sum(found.dispositions.values()) - dead, dead)
        if read != planned.indexed[day]:
            wanted = planned.indexed[day]
            msg = (
                f"a run of {day} must read the {wanted.events} events and {wanted.dead_letters} dead letters that the "
                f"index of the log counts; it read {read.events} and {read.dead_letters}. nothing was published; if "
                "schemas were registered since, read the log anew by `lockstep batch --reindex`"
            )
            raise WriteError(msg)
