"""When Dagster runs by itself: every night, every hour, and when days are stale or the speed layer falls behind."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
from clickhouse_connect.driver.exceptions import ClickHouseError

from batch_layer.planning import known_index, last_closed_day
from batch_layer.stale import StaleDay, published_days, stale_days
from infra.clickhouse import ClickHouseUnavailableError, connect
from infra.kafka import KafkaUnavailableError, TopicError
from infra.settings import Settings
from orchestration.assets import MADE, OF_THE_LOG, asset_key
from orchestration.backfill_plan import DAYS_PER_HOUR, Asked, decide, ranges
from orchestration.closing import closing_time
from orchestration.dagster_home import CHECK, FOLLOW, KIND, NIGHTLY, STALE, WHY, job_of
from orchestration.sources import SourceFile
from orchestration.speed_lag import read_lag

if TYPE_CHECKING:  # Dagster gives it no public name
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


AWAY = (KafkaUnavailableError, TopicError, ClickHouseUnavailableError, ClickHouseError)
"""What keeps one from knowing which days are stale."""

_UNDER_WAY = [
    *(dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED),
    *(dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED),
]


def close_days(source: str) -> UnresolvedAssetJobDefinition:
    """The job that closes a day of a source, or a range of days: batch run, reconciliation, certificate."""
    return dg.define_asset_job(
        job_of(source),
        selection=dg.AssetSelection.assets(*(asset_key(source, name) for name in MADE)),
        description=f"Recompute days of `{source}` exactly, compare them with the speed layer, certify them.",
    )


def nightly(settings: Settings, source: SourceFile, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """Close a source's yesterday once nothing that counts can reach it any more, and what has become stale."""
    hour, minute = closing_time(source.catalog)

    @dg.schedule(
        name=f"{source.name}_nightly",
        job=job,
        cron_schedule=f"{minute} {hour} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Closes yesterday of `{source.name}` at {hour:02}:{minute:02} UTC, when its lateness has passed, "
        "and recomputes published days that have got more since.",
    )
    def close(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        night = context.scheduled_execution_time
        yesterday = night.date() - timedelta(days=1)
        why = {yesterday: "it is over"}
        try:
            why = {one.day: one.why for one in stale_of(settings, source) if one.day < yesterday} | why
        except AWAY as error:
            # its own run will say so, and be tried again
            context.log.warning(f"which days are stale is not known: {error}")
        return [_request(found, why[found[0]], NIGHTLY, f"{night:%Y-%m-%d}") for found in ranges(sorted(why))]

    return close


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
        tags={KIND: FOLLOW},
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Indexes and archives what has come to the log of `{source}` in the last hour.",
    )


def stale_days_sensor(settings: Settings, source: SourceFile, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Asks for days that were published and have got more since: whole ranges, a few an hour, none twice."""

    @dg.sensor(
        name=f"{source.name}_stale_days",
        job=job,
        minimum_interval_seconds=300,  # it looks at an index that is brought up to date every hour
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Recomputes published days of `{source.name}` for which late events came; at most {DAYS_PER_HOUR} "
        "days an hour.",
    )
    def stale(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        under_way = dg.RunsFilter(job_name=job_of(source.name), statuses=_UNDER_WAY)
        if context.instance.get_runs_count(under_way):
            return dg.SkipReason("days are being computed; what is stale then will be seen after that")
        try:
            found = stale_of(settings, source)
        except AWAY as error:
            return dg.SkipReason(str(error))
        now = datetime.now(UTC)
        decision = decide(found, Asked.from_cursor(context.cursor), now)
        if not decision.ranges:
            waiting = f"; {decision.waiting} wait for the next hour" if decision.waiting else ""
            return dg.SkipReason(f"{len(found)} published days are stale, none to be asked for now{waiting}")
        why = {one.day: one.why for one in found}
        requests = [
            _request(settings, each, why[each[0]], STALE, f"{now:%Y-%m-%dT%H:%M:%S}") for each in decision.ranges
        ]
        return dg.SensorResult(run_requests=requests, cursor=decision.asked.as_cursor())

    return stale


def speed_lag_sensor(settings: Settings, source: SourceFile, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """Has the speed layer checked when it falls behind, and again when it keeps up."""

    @dg.sensor(
        name=f"{source.name}_speed_lag",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Says when the speed layer of `{source.name}` falls behind the log, and when it has caught up.",
    )
    def lag(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            found = read_lag(connect(settings, settings.database(source.name)), datetime.now(UTC))
        except (ClickHouseUnavailableError, ClickHouseError) as error:
            return dg.SkipReason(str(error))
        state = "behind" if found.behind else "keeps up"
        if context.cursor == state:
            return dg.SkipReason(found.text)
        return dg.SensorResult(run_requests=[dg.RunRequest(tags={KIND: CHECK, WHY: found.text})], cursor=state)

    return lag


def check_speed(source: str) -> UnresolvedAssetJobDefinition:
    """The job that looks whether the speed layer of a source keeps up."""
    return dg.define_asset_job(
        f"{source}_check_speed",
        selection=dg.AssetSelection.checks_for_assets(asset_key(source, "speed_metrics")),
        description=f"Look how far the speed layer of `{source}` is behind the log.",
    )


def stale_of(settings: Settings, source: SourceFile) -> list[StaleDay]:
    """The closed days of a source that were published and have got more since, in order.

    Raises: one of `AWAY`.
    """
    closed = last_closed_day(settings, source.catalog)
    index = known_index(settings, source.catalog)
    published = published_days(connect(settings, settings.database(source.name)))
    return [one for one in stale_days(index, published) if one.run_id and closed and one.day <= closed]


def _request(days: tuple[date, date], why: str, kind: str, asked: str) -> dg.RunRequest:
    """A run over a range of days, both ends included; the same range asked for at the same time is one run."""
    first, last = days
    name = f"{kind}/{first}/{last}/{asked}"
    tags = {KIND: kind, WHY: why}
    if first == last:
        return dg.RunRequest(name, partition_key=str(first), tags=tags)
    within = {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)}
    return dg.RunRequest(name, tags=tags | within)
