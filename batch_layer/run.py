"""A batch run: plan, one Spark job for all days, check, publish."""

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version

import polars as pl
from clickhouse_connect.driver.exceptions import ClickHouseError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from batch_layer import log
from batch_layer.alerts import alert_writes
from batch_layer.archive import Archive
from batch_layer.block_index import counted, extents, latest_ms
from batch_layer.exact import events_of, exact_states
from batch_layer.indexing import Indexer, bring_up_to_date
from batch_layer.job import read_rows, spark_session
from batch_layer.lookups import Versions, read_versions
from batch_layer.manifest import Indexed, Plan, earliest_record_time, fitted, plan
from batch_layer.publish import (
    WRITTEN,
    ExceptionFrames,
    ExpectedFrames,
    Frames,
    ItemFrames,
    StateFrames,
    Target,
    WriteError,
    Writer,
    check_written,
    publish,
    published,
)
from batch_layer.reading import reader_of
from batch_layer.refusals import LostError
from batch_layer.rows import (
    DEAD,
    EVENT,
    REPAIRS,
    STATES,
    TALLY,
    day_spans,
    ddl,
    first_repairs,
    from_bytes,
    neighbourhood,
)
from batch_layer.sessions import SessionCut
from batch_layer.tasks import Told
from infra.clickhouse import connect, insert_frame
from infra.processes import cpu_seconds
from infra.registry import require_registry
from infra.settings import Settings
from metrics.aggregation import SEMANTICS_VERSION
from metrics.catalog import Catalog
from metrics.disposition import COUNTED, DEAD_LETTER, DISPOSITIONS, ID_CONFLICT
from serving import schema

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
    """

    partition: date
    run_id: str
    events: int
    duplicates: int
    dead_letters: int
    published: bool

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


def new_run_id() -> str:
    """A new name for a run; names sort by the time at which they were made."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"


def plan_days(
    settings: Settings,
    catalog: Catalog,
    days: Sequence[date],
    *,
    allow_open: bool = False,
    reindex: bool = False,
    told: Told = lambda *_: None,
) -> Plan:
    """The plan of a run over these days of the log as it is now; see `batch_layer.manifest` for its refusals.

    Args:
        settings: Where Kafka and ClickHouse are.
        catalog: Of the source.
        days: UTC days, in any order.
        allow_open: Whether a day may be planned before the watermark has passed its end and the lateness.
        reindex: Whether the whole log is read for its index, which is else brought up to date.
        told: Told how far that is.

    Raises:
        RegistryUnavailableError: The catalog's format needs a schema registry, and none answers.
    """
    require_registry(settings, catalog)
    since = earliest_record_time(catalog, days) if days else 0
    state = log.observe(settings, catalog.topic, since)
    archive = Archive(settings.archive, catalog.topic, state.topic_id)
    state = log.with_archive(state, archive.stretches(), since)
    planned = plan(catalog, days, state, allow_open=allow_open)
    schema.apply(connect(settings), catalog, settings.database(catalog.source))
    indexer = Indexer(settings, catalog, state.topic_id, reader_of(settings, catalog.topic, planned))
    refuse_former(indexer, planned)
    index = bring_up_to_date(
        indexer, {p.topic_partition: (p.begin, p.end) for p in state.partitions}, told, anew=reindex
    )
    spans = day_spans(planned.days)
    last = max(end for _, end in spans) + latest_ms(index, spans)
    stops = log.stops(settings, catalog.topic, planned, last)
    indexed = {day: Indexed(*counted(index, span)) for day in planned.days for span in day_spans([day])}
    return fitted(planned, catalog, stops, extents(index, neighbourhood(catalog, spans)), indexed)


def refuse_former(indexer: Indexer, planned: Plan) -> None:
    """Refuses days of which events stood in a log that the topic's name no longer means.

    Raises:
        LostError: There are such.
    """
    client = indexer.client()
    for day in planned.days:
        (span,) = day_spans([day])
        if former := indexer.in_former_logs(client, span):
            topic = indexer.catalog.topic
            listed = ", ".join(f"{events} in the topic of id {topic_id}" for topic_id, events in former.items())
            msg = (
                f"topic `{topic}` was made anew: it has id {planned.topic_id}, and {day} had events in a former one "
                f"({listed}). what is published of that day stays; to count the new topic alone, name another source"
            )
            raise LostError(msg)


def run(
    settings: Settings,
    catalog: Catalog,
    days: Sequence[date],
    run_id_maker: Callable[[], str] = new_run_id,
    *,
    allow_open: bool = False,
    session_of: Callable[[Settings, int], AbstractContextManager[SparkSession]] = spark_session,
    told: Told = lambda *_: None,
) -> list[PartitionResult]:
    """Computes and publishes days in one Spark run; a day without events is published with no rows.

    Args:
        settings: Where Kafka and ClickHouse are.
        catalog: What is computed.
        days: UTC days, in any order.
        run_id_maker: Names the run.
        allow_open: Whether a day may be computed before the watermark has passed its end and the lateness.
        session_of: Opens a Spark session for a number of records.
        told: Told how far reading the log for its index is.

    Raises:
        DayRefusedError: The log, or the history of a lookup, cannot give one of the days; no run was written.
        WriteError: ClickHouse lost rows, or the run has read other events than the index of the log; nothing was
            published.
    """
    planned = plan_days(settings, catalog, days, allow_open=allow_open, told=told)
    run_id = run_id_maker()
    database = settings.database(catalog.source)
    target = Target(settings, database, run_id)
    client = target.connect()
    before = published(client, planned.days)
    lookups = read_versions(settings, client, catalog, planned)
    started, cpu_before = time.monotonic(), cpu_seconds(os.getpid())
    unknown = dict.fromkeys(planned.days, (Day(dict.fromkeys(DISPOSITIONS, 0), 0), ""))
    insert_frame(client, "batch_runs", _runs(catalog, run_id, "running", unknown))
    try:
        with session_of(settings, planned.records) as session:
            counts, ledger = _compute(session, catalog, planned, target, lookups)
            spent = {
                "wall_seconds": time.monotonic() - started,
                # of this process and of Spark's on this machine
                "cpu_seconds": cpu_seconds(os.getpid()) - cpu_before,
            }
        check_complete(planned, counts)
        manifests = _manifests(catalog, run_id, planned, counts, ledger, lookups, spent)
        insert_frame(client, "batch_runs", _runs(catalog, run_id, "complete", manifests))
        publish(client, run_id, before, catalog)
    except BaseException:
        # The reason of the failure is worth more than its record, which a ClickHouse that is away cannot take.
        with suppress(ClickHouseError, OSError):
            insert_frame(client, "batch_runs", _runs(catalog, run_id, "failed", unknown))
        raise
    return [
        PartitionResult(day, run_id, found.events, found.copies, found.dispositions[DEAD_LETTER], published=True)
        for day, found in counts.items()
    ]


def _compute(
    session: SparkSession, catalog: Catalog, planned: Plan, target: Target, lookups: Versions | None
) -> tuple[dict[date, Day], pl.DataFrame]:
    """Reads the log once, writes all rows, checks that they arrived; returns counts by day and the ledger."""
    rows = read_rows(session, target.settings, catalog, planned, lookups).persist()
    events = events_of(rows).persist()
    counts = _counts(rows, events, planned.days)
    whole = rows.filter(F.col("kind").isin(TALLY, REPAIRS)).select("kind", "payload").collect()
    tallies, repairs = ([from_bytes(bytes(r.payload)) for r in whole if r.kind == kind] for kind in (TALLY, REPAIRS))
    ledger = pl.concat(tallies) if tallies else pl.DataFrame()

    def write(name: str, frame: DataFrame, frames: Frames) -> Counter[str]:
        written = frame.mapInArrow(Writer(target, frames, name), ddl(WRITTEN)).collect()
        return sum((Counter({row.table: row.rows}) for row in written), Counter())

    exceptions = rows.filter((F.col("kind") == DEAD) | ((F.col("kind") == EVENT) & (F.col("disposition") != COUNTED)))
    states = rows.filter(F.col("kind") == STATES).select("topic_partition", "group", "bucket", "payload")
    states = states.repartition("group", "bucket")
    spans = tuple(day_spans(planned.days))
    writes: list[tuple[str, DataFrame, Frames]] = [
        ("expected", states, ExpectedFrames(catalog, spans)),
        *(
            (f"exact{number}", e.frame, (ItemFrames if e.by_value else StateFrames)(e.group, e.metrics))
            for number, e in enumerate(exact_states(catalog, events, SessionCut(spans)))
        ),
        ("exceptions", exceptions.coalesce(1), ExceptionFrames(catalog.topic, first_repairs(repairs))),
        *alert_writes(catalog, events, planned.days, target.connect(), target.database),
    ]
    with ThreadPoolExecutor(_WRITERS_AT_ONCE) as pool:
        written = sum(pool.map(lambda job: write(*job), writes), Counter())
    check_written(target.connect(), target.run_id, written)
    return counts, ledger


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


def _counts(rows: DataFrame, events: DataFrame, days: Sequence[date]) -> dict[date, Day]:
    """Counts per day, for every day asked for."""
    of_events = events.filter("inside").select(
        F.expr("date(timestamp_millis(event_time))").alias("day"),
        "disposition",
        "exact",
        F.xxhash64("event_id", "event_time").alias("identity"),
    )
    dead = rows.filter(F.col("kind") == DEAD).select(
        F.expr("date(timestamp_millis(record_time))").alias("day"),
        "disposition",
        F.lit(False).alias("exact"),
        F.lit(0).cast("long").alias("identity"),
    )
    counted = (
        of_events.unionAll(dead)
        .groupBy("day", "disposition")
        .agg(
            F.count("*").alias("records"),
            F.expr("count_if(exact)").alias("events"),
            F.expr("bit_xor(IF(exact, identity, 0L))").alias("checksum"),
        )
        .collect()
    )
    dispositions = {day: dict.fromkeys(DISPOSITIONS, 0) for day in days}
    events_by_day, checksums = dict.fromkeys(days, 0), dict.fromkeys(days, 0)
    for row in counted:
        dispositions[row.day][row.disposition] += row.records
        events_by_day[row.day] += row.events
        checksums[row.day] ^= row.checksum
    return {day: Day(dispositions[day], events_by_day[day], checksums[day]) for day in days}


def _manifests(
    catalog: Catalog,
    run_id: str,
    planned: Plan,
    counts: dict[date, Day],
    ledger: pl.DataFrame,
    lookups: Versions | None,
    spent: Mapping[str, float],
) -> dict[date, tuple[Day, str]]:
    """Each day's counts and its manifest: what was read, what became of it, and by which code."""
    blocks = ledger.to_dicts() if ledger.height else []
    read = {block["topic_partition"]: block["read"] for block in blocks}
    formed = sum(block[name] for block in blocks for name in DISPOSITIONS if name != DEAD_LETTER)
    inside = sum(n for day in counts.values() for name, n in day.dispositions.items() if name != DEAD_LETTER)
    ranges = [
        {
            **asdict(r),
            "records": read.get(r.topic_partition, 0),
            **{
                name: sum(block[name] for block in blocks if block["topic_partition"] == r.topic_partition)
                for name in DISPOSITIONS
            },
        }
        for r in planned.ranges
    ]
    manifests = {}
    for day, found in counts.items():
        manifest = {
            "run_id": run_id,
            "source": catalog.source,
            "topic": catalog.topic,
            "partition": day.isoformat(),
            "catalog_version": catalog.version,
            "ranges": ranges,
            "dispositions": found.dispositions,
            "events": found.events,
            "outside": formed - inside,
            "indexed": asdict(planned.indexed[day]),
            "topic_id": planned.topic_id,
            "closed": planned.last_closed is not None and day <= planned.last_closed,
            "checksum": f"{found.checksum & 0xFFFF_FFFF_FFFF_FFFF:016x}",
            **{name: round(seconds, 3) for name, seconds in spent.items()},
            "code_version": f"{version('lockstep')}+semantics.{SEMANTICS_VERSION}",
            "ledger": [{key: value for key, value in block.items() if key != "read"} for block in blocks],
        }
        if lookups:
            manifest["lookups"] = lookups.positions
        manifests[day] = (found, json.dumps(manifest))
    return manifests


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
