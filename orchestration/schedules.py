"""When Dagster runs by itself: every night, as soon as the day before is closed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from batch_layer.planning import known_index, last_closed_day
from batch_layer.stale import published_days, stale_days
from infra.clickhouse import ClickHouseUnavailableError, connect
from infra.kafka import KafkaUnavailableError, TopicError
from infra.settings import Settings
from metrics.catalog import Catalog
from orchestration.assets import MADE, OF_THE_LOG, asset_key
from orchestration.backfill_plan import DAYS_PER_HOUR, Asked, decide
from orchestration.dagster_home import job_of
from orchestration.sources import SourceFile

if TYPE_CHECKING:  # Dagster gives these two no public name
    from dagster._core.definitions.partitions.partitioned_schedule import UnresolvedPartitionedAssetScheduleDefinition
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_MARGIN = timedelta(minutes=15)
_LONGEST = timedelta(hours=23, minutes=59)


def close_days(source: str) -> UnresolvedAssetJobDefinition:
    """The job that closes a day of a source, or a range of days: batch run, reconciliation, certificate."""
    return dg.define_asset_job(
        job_of(source),
        selection=dg.AssetSelection.assets(*(asset_key(source, name) for name in MADE)),
        description=f"Recompute days of `{source}` exactly, compare them with the speed layer, certify them.",
    )


def nightly(
    catalog: Catalog, job: UnresolvedAssetJobDefinition
) -> UnresolvedPartitionedAssetScheduleDefinition | dg.ScheduleDefinition:
    """Close a source's yesterday once nothing that counts can reach it any more."""
    hour, minute = closing_time(catalog)
    return dg.build_schedule_from_partitioned_job(
        job,
        name=f"{catalog.source}_nightly",
        hour_of_day=hour,
        minute_of_hour=minute,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Closes yesterday of `{catalog.source}` at {hour:02}:{minute:02} UTC; its lateness has passed.",
    )


def follow_log(source: str) -> UnresolvedAssetJobDefinition:
    """The job that copies what has come since to the archive, and counts it for the index of the log."""
    return dg.define_asset_job(
        f"{source}_follow_log",
        selection=dg.AssetSelection.assets(*(asset_key(source, name) for name in OF_THE_LOG)),
        description=f"Index and archive what has come to the log of `{source}` since the last time.",
    )


def hourly(source: str, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """Follow a source's log every hour."""
    return dg.ScheduleDefinition(
        name=f"{source}_hourly",
        job=job,
        cron_schedule="5 * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Indexes and archives what has come to the log of `{source}` in the last hour.",
    )


def stale_days_sensor(settings: Settings, source: SourceFile, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Asks for days that were published and have got more since: whole ranges, a few an hour, none twice."""

    @dg.sensor(
        name=f"{source.name}_stale_days",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Recomputes published days of `{source.name}` for which late events came; at most {DAYS_PER_HOUR} "
        "days an hour.",
    )
    def stale(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            closed = last_closed_day(settings, source.catalog)
            index = known_index(settings, source.catalog)
            published = published_days(connect(settings, settings.database(source.name)))
        except (KafkaUnavailableError, TopicError, ClickHouseUnavailableError) as error:
            return dg.SkipReason(str(error))
        found = [one for one in stale_days(index, published) if one.run_id and closed and one.day <= closed]
        decision = decide(found, Asked.from_cursor(context.cursor), datetime.now(UTC))
        if not decision.ranges:
            waiting = f"; {decision.waiting} wait for the next hour" if decision.waiting else ""
            return dg.SkipReason(f"{len(found)} published days are stale, none to be asked for now{waiting}")
        why = {one.day: one.why for one in found}
        requests = [
            dg.RunRequest(
                tags={
                    "dagster/asset_partition_range_start": str(first),
                    "dagster/asset_partition_range_end": str(last),
                    "lockstep/why": why[first],
                }
            )
            for first, last in decision.ranges
        ]
        return dg.SensorResult(run_requests=requests, cursor=decision.asked.as_cursor())

    return stale


def closing_time(catalog: Catalog) -> tuple[int, int]:
    """Hour and minute (UTC) at which yesterday is closed: midnight, lateness, out-of-orderness and a margin."""
    after = min(catalog.allowed_lateness + catalog.out_of_orderness + _MARGIN, _LONGEST)
    minutes = -(-after // timedelta(minutes=1))
    return minutes // 60, minutes % 60
