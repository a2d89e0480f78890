"""A batch run: plan, one Spark job for all days, check, publish."""

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from importlib.metadata import version
from typing import Any

import polars as pl
from clickhouse_connect.driver.exceptions import ClickHouseError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from batch_layer.alerts import alert_writes, watched_events
from batch_layer.copies import find_copies
from batch_layer.counts import Day, check_complete, counts_by_day
from batch_layer.exact import FOLDED, Fold
from batch_layer.job import read_rows, spark_session
from batch_layer.lookups import Versions, read_versions
from batch_layer.manifest import Plan
from batch_layer.planning import plan_days
from batch_layer.publish import (
    WRITTEN,
    ExactFrames,
    ExceptionFrames,
    ExpectedFrames,
    Frames,
    Target,
    Writer,
    check_written,
    publish,
    published,
)
from batch_layer.rows import (
    DEAD,
    EPOCH,
    EVENT,
    LEFT_OUT,
    REPAIRS,
    STATES,
    TALLY,
    day_spans,
    ddl,
    first_repairs,
    from_bytes,
    neighbourhood,
)
from batch_layer.tasks import Told
from infra.clickhouse import insert_frame
from infra.processes import cpu_seconds
from infra.settings import Settings
from metrics.aggregation import SEMANTICS_VERSION
from metrics.catalog import Catalog
from metrics.disposition import DEAD_LETTER, DISPOSITIONS
from metrics.window import DAY_MS

_WRITERS_AT_ONCE = 4


@dataclass(frozen=True)
class PartitionResult:
    """One day of a run.

    Attributes:
        partition: The UTC day.
        run_id: The run; the days of one run share it.
        events: Well-formed events of the day, each once.
        duplicates: Copies left out of `events`, wherever in the log they stood.
        dead_letters: Records sent on that day that are no events.
        published: Whether readers now see this run.
        manifest: What was read, and what became of it; without the blocks of the ledger.
    """

    partition: date
    run_id: str
    events: int
    duplicates: int
    dead_letters: int
    published: bool
    manifest: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def as_json(self) -> dict[str, str | int | bool]:
        """The result as the command line prints it."""
        return {
            "partition": self.partition.isoformat(),
            "run_id": self.run_id,
            "events": self.events,
            "duplicates": self.duplicates,
            "dead_letters": self.dead_letters,
            "published": self.published,
        }


def new_run_id() -> str:
    """A new name for a run; names sort by the time at which they were made."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"


def run(
    settings: Settings,
    catalog: Catalog,
    days: Sequence[date],
    *,
    allow_open: bool = False,
    reindex: bool = False,
    session_of: Callable[[Settings, int], AbstractContextManager[SparkSession]] = spark_session,
    told: Told = lambda *_: None,
    each: Callable[[PartitionResult], None] = lambda _: None,
) -> list[PartitionResult]:
    """Computes and publishes days in one Spark run; a day without events is published with no rows.

    Of many days some are published while others are still to be computed; those stay when the run fails.

    Args:
        settings: Where Kafka and ClickHouse are.
        catalog: What is computed.
        days: UTC days, in any order.
        allow_open: Whether a day may be computed before the watermark has passed its end and the lateness.
        reindex: Whether the whole log is read for its index, which is else brought up to date.
        session_of: Opens a Spark session for a number of records.
        told: Told how far the index of the log is, and then the days.
        each: Told of each day as it is published.

    Raises:
        DayRefusedError: The log, or the history of a lookup, cannot give one of the days; no run was written.
        WriteError: ClickHouse lost rows, or the run has read other events than the index of the log; of the day that it
            names nothing was published.
    """
    planned = plan_days(settings, catalog, days, allow_open=allow_open, reindex=reindex, told=told)
    return compute(settings, catalog, planned, session_of=session_of, told=told, each=each)


def compute(
    settings: Settings,
    catalog: Catalog,
    planned: Plan,
    *,
    shown: bool = True,
    session_of: Callable[[Settings, int], AbstractContextManager[SparkSession]] = spark_session,
    told: Told = lambda *_: None,
    each: Callable[[PartitionResult], None] = lambda _: None,
) -> list[PartitionResult]:
    """Computes what was planned, and publishes it if it is to be shown.

    Args:
        settings: Where Kafka and ClickHouse are.
        catalog: What is computed.
        planned: The days, and the offsets to read.
        shown: Whether readers are to see it; else nobody does, and `retention.prune` drops it after a while.
        session_of: Opens a Spark session for a number of records.
        told: Told how many days are done.
        each: Told of each day that is done.

    Raises:
        DayRefusedError: The history of a lookup cannot give one of the days; no run was written.
        WriteError: As of `run`.
    """
    run_id = new_run_id()
    target = Target(settings, settings.database(catalog.source), run_id)
    client = target.connect()
    before = published(client, planned.days)
    lookups = read_versions(settings, client, catalog, planned)
    if lookups and planned.lookups_until is not None:
        lookups = lookups.until(planned.lookups_until)
    unknown = dict.fromkeys(planned.days, (Day(dict.fromkeys(DISPOSITIONS, 0), 0), ""))
    insert_frame(client, "batch_runs", _runs(catalog, run_id, "running", unknown))
    done: dict[date, PartitionResult] = {}
    try:
        clock = Clock()
        with session_of(settings, planned.records) as session:
            read = Reading.of(session, settings, catalog, planned, lookups)
            for portion in portions(planned, settings.portion_events):
                counts = _computed(read, portion, target)
                check_complete(planned, counts)
                manifests = _manifests(read, run_id, counts, clock.spent())
                complete = {day: (counts[day], json.dumps(manifest)) for day, manifest in manifests.items()}
                insert_frame(client, "batch_runs", _runs(catalog, run_id, "complete", complete))
                if shown:
                    publish(client, run_id, {day: before[day] for day in portion}, catalog)
                done |= {day: _result(run_id, found, manifests[day], shown=shown) for day, found in counts.items()}
                for day in counts:
                    each(done[day])
                told("days published" if shown else "days computed", len(portion), len(planned.days))
    except BaseException:
        # The reason of the failure is worth more than its record, which a ClickHouse that is away cannot take.
        with suppress(ClickHouseError, OSError):
            left = {day: nothing for day, nothing in unknown.items() if day not in done}
            insert_frame(client, "batch_runs", _runs(catalog, run_id, "failed", left))
        raise
    return [*done.values()]


def _result(run_id: str, found: Day, manifest: dict[str, Any], *, shown: bool) -> PartitionResult:
    return PartitionResult(
        date.fromisoformat(manifest["partition"]),
        run_id,
        found.events,
        found.copies,
        found.dispositions[DEAD_LETTER],
        published=shown,
        manifest={name: part for name, part in manifest.items() if name != "ledger"},
    )


def portions(planned: Plan, most_events: int) -> Iterator[tuple[date, ...]]:
    """The days of a plan in parts that are computed and published one after the other.

    A part has as many events as `most_events`, or is a day. So a run that is killed loses no more than that, while days
    of few events share what Spark costs for each part.
    """
    held: list[date] = []
    events = 0
    for day in planned.days:
        more = planned.indexed[day].events
        if held and events + more > most_events:
            yield tuple(held)
            held, events = [], 0
        held.append(day)
        events += more
    yield tuple(held)


class Clock:
    """What a run has taken since it began: of the processor, the time of this process and of those that it started.

    Spark's are among these, but not the executors of a cluster.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), cpu_seconds(os.getpid())

    def spent(self) -> dict[str, float]:
        """`wall_seconds` and `cpu_seconds`."""
        return {"wall_seconds": time.monotonic() - self._wall, "cpu_seconds": cpu_seconds(os.getpid()) - self._cpu}


@dataclass(frozen=True)
class Reading:
    """What one pass over the log has found, for all days of a plan.

    Attributes:
        rows: Of `batch_layer.rows`, kept by Spark.
        ledger: A row per topic partition and block of offsets, with `read`, the records of the topic partition.
        repairs: `batch_layer.rows.REPAIRED` of the whole range.
        copies: Of all days; see `copies.find_copies`.
    """

    catalog: Catalog
    planned: Plan
    lookups: Versions | None
    rows: DataFrame
    ledger: pl.DataFrame
    repairs: pl.DataFrame
    copies: pl.Series

    @classmethod
    def of(
        cls, session: SparkSession, settings: Settings, catalog: Catalog, planned: Plan, lookups: Versions | None
    ) -> "Reading":
        """Reads the log once."""
        rows = read_rows(session, settings, catalog, planned, lookups).persist()
        whole = rows.filter(F.col("kind").isin(TALLY, REPAIRS)).select("kind", "payload").collect()
        tallies, repairs = (
            [from_bytes(bytes(row.payload)) for row in whole if row.kind == kind] for kind in (TALLY, REPAIRS)
        )
        ledger = pl.concat(tallies) if tallies else pl.DataFrame()
        return cls(catalog, planned, lookups, rows, ledger, first_repairs(repairs), find_copies(rows))

    def events(self, spans: Sequence[tuple[int, int]]) -> DataFrame:
        """Payloads of the events of some days (ms), and of those that their sessions and alerts may reach."""
        days = {day for start, end in spans for day in range(start // DAY_MS, (end - 1) // DAY_MS + 1)}
        mine = (F.col("kind") == EVENT) & F.col("day").isin([*days])
        return self.rows.filter(mine).select("topic_partition", "day", "payload")

    def dead(self, spans: Sequence[tuple[int, int]]) -> DataFrame:
        """The dead letters of some days (ms)."""
        return self.rows.filter((F.col("kind") == DEAD) & _within("record_time", spans))

    def exceptions(self, spans: Sequence[tuple[int, int]]) -> DataFrame:
        """The records of some days (ms) that were not counted."""
        left_out = (F.col("kind") == LEFT_OUT) & _within("event_time", spans)
        return self.dead(spans).unionAll(self.rows.filter(left_out))

    def states(self, days: Sequence[date]) -> DataFrame:
        """The states of some days, and those of all sessions."""
        numbers = [(day - EPOCH).days for day in days]
        mine = F.col("day").isNull() | F.col("day").isin(numbers)
        chosen = self.rows.filter((F.col("kind") == STATES) & mine)
        return chosen.select("topic_partition", "group", "bucket", "payload").repartition("group", "bucket")


def _computed(read: Reading, days: tuple[date, ...], target: Target) -> dict[date, Day]:
    """Writes all rows of some days and checks that they arrived; returns counts by day."""
    catalog, spans = read.catalog, tuple(day_spans(days))
    near = read.events(neighbourhood(catalog, spans))
    counts = counts_by_day(read.events(spans), read.dead(spans), read.copies, days)

    def write(name: str, frame: DataFrame, frames: Frames) -> Counter[str]:
        written = frame.mapInArrow(Writer(target, frames, f"{days[0]}/{name}"), ddl(WRITTEN)).collect()
        return sum((Counter({row.table: row.rows}) for row in written), Counter())

    folded = near.mapInArrow(Fold(catalog, spans, read.copies), ddl(FOLDED)).repartition("group", "bucket")
    watched = watched_events(catalog, near, spans, read.copies).persist()
    writes: list[tuple[str, DataFrame, Frames]] = [
        ("expected", read.states(days), ExpectedFrames(catalog, spans)),
        ("exact", folded, ExactFrames(catalog, spans)),
        ("exceptions", read.exceptions(spans).coalesce(1), ExceptionFrames(catalog.topic, read.repairs)),
        *alert_writes(catalog, watched, days, target.connect(), target.database),
    ]
    try:
        with ThreadPoolExecutor(_WRITERS_AT_ONCE) as pool:
            written = sum(pool.map(lambda job: write(*job), writes), Counter())
    finally:
        watched.unpersist()
    check_written(target.connect(), target.run_id, days, written)
    return counts


def _manifests(
    read: Reading, run_id: str, counts: Mapping[date, Day], spent: Mapping[str, float]
) -> dict[date, dict[str, Any]]:
    """Each day's manifest: what was read, what became of it, and by which code."""
    catalog, planned = read.catalog, read.planned
    blocks = read.ledger.to_dicts() if read.ledger.height else []
    records = {block["topic_partition"]: block["read"] for block in blocks}
    formed = sum(block[name] for block in blocks for name in DISPOSITIONS if name != DEAD_LETTER)
    ranges = [
        {
            **asdict(r),
            "records": records.get(r.topic_partition, 0),
            **{
                name: sum(block[name] for block in blocks if block["topic_partition"] == r.topic_partition)
                for name in DISPOSITIONS
            },
        }
        for r in planned.ranges
    ]
    manifests = {}
    for day, found in counts.items():
        inside = sum(n for name, n in found.dispositions.items() if name != DEAD_LETTER)
        manifest = {
            "run_id": run_id,
            "source": catalog.source,
            "topic": catalog.topic,
            "topic_id": planned.topic_id,
            "partition": day.isoformat(),
            "catalog_version": catalog.version,
            "ranges": ranges,
            "dispositions": found.dispositions,
            "events": found.events,
            "checksum": f"{found.checksum & 0xFFFF_FFFF_FFFF_FFFF:016x}",
            "outside": formed - inside,
            "indexed": asdict(planned.indexed[day]),
            "closed": planned.last_closed is not None and day <= planned.last_closed,
            **{name: round(seconds, 3) for name, seconds in spent.items()},
            "code_version": code_version(),
            "ledger": [{key: value for key, value in block.items() if key != "read"} for block in blocks],
        }
        if read.lookups:
            manifest["lookups"] = read.lookups.positions
        manifests[day] = manifest
    return manifests


def code_version() -> str:
    """Of what computes: the package, and the meaning of the aggregations."""
    return f"{version('lockstep')}+semantics.{SEMANTICS_VERSION}"


def _runs(catalog: Catalog, run_id: str, status: str, days: dict[date, tuple[Day, str]]) -> pl.DataFrame:
    """Rows of `batch_runs`."""
    versions = [metric.metric_version for metric in catalog.metrics]
    return pl.DataFrame(
        [
            {
                "run_id": run_id,
                "partition": day,
                "catalog_version": catalog.version,
                "metric_versions": versions,
                "manifest": manifest,
                "status": status,
                "events": found.events,
                **found.dispositions,
            }
            for day, (found, manifest) in days.items()
        ],
        schema_overrides=dict.fromkeys(("events", *DISPOSITIONS), pl.UInt64),
    )


def _within(time: str, spans: Sequence[tuple[int, int]]) -> Column:
    return F.expr(" OR ".join(f"(`{time}` >= {start}L AND `{time}` < {end}L)" for start, end in spans))
