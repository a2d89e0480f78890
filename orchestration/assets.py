"""What Dagster materializes of a source: a day's exact metrics, and their reconciliation with the speed layer.

A source's assets have its name before theirs, `shop/batch_metrics`, and are a group of that name.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from dagster._core.errors import DagsterPipesExecutionError  # it has no public name

from batch_layer.archiving import archiver_of, catch_up, compare
from batch_layer.history import rows_by_day
from batch_layer.planning import known_index, refresh_index
from batch_layer.refusals import REFUSED
from batch_layer.retention import prune
from batch_layer.stale import days_in, published_days, stale_days
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from orchestration.asset_metadata import (
    certificate_metadata,
    columns_of,
    columns_of_metrics,
    manifest_metadata,
    reconciliation_metadata,
)
from orchestration.closing import closing_time
from orchestration.sources import SourceFile
from orchestration.speed_lag import MOST_BEHIND, read_lag
from reconciliation.reconcile import reconcile
from reconciliation.report import write_report
from reconciliation.result import PartitionReconciliation
from serving import schema

MADE = ("batch_metrics", "reconciliation", "certificates")
"""What a run for a day makes, in this order; names without that of the source."""

ARCHIVE_CHECK = "archive_is_whole"
OF_THE_LOG = ("log_manifest", "archive")
"""What follows the log itself, whatever the day."""

COMPLETE_CHECK = "all_events_are_in"
RESIDUAL_CHECK = "residual_is_zero"
CERTIFIED_CHECK = "evidence_closes"
LAG_CHECK = "keeps_up"

CERTIFIED_WITHIN = timedelta(hours=2)
"""How long after a day can be closed it is to be certified; else Dagster shows the certificates as overdue."""

_TRIES_LOOKED_AT = 4

_RETRIES = dg.RetryPolicy(max_retries=2, delay=20, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""Of what a service that is away for a moment can fail; what is refused is refused again, and not tried."""


def days_of(settings: Settings) -> dg.DailyPartitionsDefinition:
    """One partition per closed UTC day, from `LOCKSTEP_FIRST_DAY` on."""
    return dg.DailyPartitionsDefinition(start_date=settings.first_day.isoformat(), timezone="UTC")


def asset_key(source: str, name: str) -> dg.AssetKey:
    """The key of a source's asset."""
    return dg.AssetKey([source, name])


def assets(settings: Settings, source: SourceFile) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The event log as Dagster sees it, the batch layer's metrics, and what reconciliation makes of them.

    A range of days is one Dagster run and one Spark run: starting Spark costs as much as several days of events.
    """
    days = days_of(settings)
    owners = list(source.catalog.owners)
    speed = dg.AssetSpec(
        asset_key(source.name, "speed_metrics"),
        deps=[asset_key(source.name, "event_log")],
        group_name=source.name,
        owners=owners,
        kinds={"beam", "clickhouse"},
        description=f"Values of the same metrics within seconds, by the speed layer `speed-{source.name}`, which runs "
        "all the time. They are served until batch has certified their day.",
    )
    log = dg.AssetSpec(
        asset_key(source.name, "event_log"),
        group_name=source.name,
        owners=owners,
        kinds={"kafka"},
        description=f"Every event of `{source.name}`, in topic `{source.catalog.topic}`. Both layers read it.",
        metadata={"topic": source.catalog.topic, "brokers": settings.bootstrap},
    )
    served = dg.AssetSpec(
        asset_key(source.name, "serving_views"),
        deps=[asset_key(source.name, name) for name in ("speed_metrics", "certificates")],
        group_name=source.name,
        owners=owners,
        kinds={"clickhouse"},
        description=f"One view per metric and grain in database `{settings.database(source.name)}`: each window from "
        "the batch layer once its day is certified, from the speed layer before.",
    )
    of_the_log = [_log_manifest(settings, source), _archive(settings, source)]
    of_days = [_batch_metrics(settings, source, days), _reconciled(settings, source, days)]
    return [log, speed, *of_the_log, *of_days, served]


def asset_checks(settings: Settings, source: SourceFile) -> list[dg.AssetChecksDefinition]:
    """The checks of what Dagster does not make itself."""
    return [_keeps_up(settings, source)]


def _keeps_up(settings: Settings, source: SourceFile) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name=LAG_CHECK,
        asset=asset_key(source.name, "speed_metrics"),
        description=f"What is in the log is published, but for the last {MOST_BEHIND.total_seconds():.0f} s of it.",
    )
    def keeps_up() -> dg.AssetCheckResult:
        """Look how far the speed layer is behind."""
        lag = read_lag(connect(settings, settings.database(source.name)), datetime.now(UTC))
        return dg.AssetCheckResult(passed=not lag.behind, metadata=lag.as_metadata(), description=lag.text)

    return keeps_up


def _log_manifest(settings: Settings, source: SourceFile) -> dg.AssetsDefinition:
    @dg.asset(
        name="log_manifest",
        key_prefix=source.name,
        deps=[asset_key(source.name, "event_log")],
        group_name=source.name,
        owners=list(source.catalog.owners),
        kinds={"clickhouse"},
        retry_policy=_RETRIES,
        metadata=columns_of(schema.table("log_blocks")),
        description="How many events of each hour lie in each block of offsets. It says where the events of a day are, "
        "which days have got more since they were published, and what a batch run must find.",
    )
    def log_manifest(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        """Read what has come since."""
        index = refresh_index(settings, source.catalog, lambda *told: context.log.info("%s: %d of %d", *told))
        days = days_in(index)
        return dg.MaterializeResult(
            metadata={
                "records": int(index["records"].sum()),
                "blocks": index.height,
                "first_day": str(days[0]) if days else "none",
                "last_day": str(days[-1]) if days else "none",
            }
        )

    return log_manifest


def _archive(settings: Settings, source: SourceFile) -> dg.AssetsDefinition:
    @dg.asset(
        name="archive",
        key_prefix=source.name,
        deps=[asset_key(source.name, "event_log")],
        group_name=source.name,
        owners=list(source.catalog.owners),
        kinds={"parquet"},
        retry_policy=_RETRIES,
        description=f"Every record of topic `{source.catalog.topic}` in Parquet files at `{settings.archive}`, so that "
        "days can be recomputed when Kafka no longer has them.",
        check_specs=[
            dg.AssetCheckSpec(
                ARCHIVE_CHECK,
                asset=asset_key(source.name, "archive"),
                description="Nothing had expired before it was copied, and what was copied is what the log has.",
            )
        ],
    )
    def archive(context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
        """Copy what has come since, and compare it with the log."""
        archiver, offsets = archiver_of(settings, source.catalog)
        copied = catch_up(archiver, offsets, lambda *told: context.log.info("%s: %d of %d", *told))
        differing = compare(archiver, copied.stretches, offsets)
        yield dg.MaterializeResult(metadata={"records": copied.records, "stretches": len(copied.stretches)})
        gaps = [f"partition {gap.topic_partition}: {gap.begin} to {gap.end}" for gap in copied.gaps]
        yield dg.AssetCheckResult(
            check_name=ARCHIVE_CHECK,
            passed=not gaps and not differing,
            metadata={"gaps": gaps, "differing_blocks": {str(number): blocks for number, blocks in differing.items()}},
        )

    return archive


def _batch_metrics(settings: Settings, source: SourceFile, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    key = asset_key(source.name, "batch_metrics")

    @dg.asset(
        key=key,
        deps=[asset_key(source.name, "event_log")],
        group_name=source.name,
        owners=list(source.catalog.owners),
        kinds={"pyspark", "clickhouse"},
        code_version=source.catalog.version,
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=_RETRIES,
        metadata=columns_of_metrics(source.catalog),
        description=f"Exact values per day of {', '.join(metric.name for metric in source.catalog.shown)}.",
        check_specs=[
            dg.AssetCheckSpec(
                COMPLETE_CHECK,
                asset=key,
                partitions_def=days,
                description="What is published of a day has all events and dead letters of it that the log is known to "
                "hold.",
            )
        ],
    )
    def batch_metrics(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
        """Run Spark outside this process, by the command that a cluster would be given too."""
        database = connect(settings, settings.database(source.name))
        wanted = left_of(context, key)
        before = _shown(database)
        try:
            yield _by_spark(context, settings, source, wanted)
        except BaseException:
            # A run publishes some days before others; those need not be computed again.
            with suppress(ClickHouseError, OSError):
                shown = _shown(database)
                for day in [day for day in wanted if shown.get(day) != before.get(day)]:
                    context.log_event(dg.AssetMaterialization(key, partition=day, metadata={"run_id": shown[day]}))
            raise
        dropped = prune(database, timedelta(days=settings.runs_kept_days), datetime.now(UTC))
        context.log.info(f"rows of {len(dropped)} outdated runs dropped")
        known = stale_days(known_index(settings, source.catalog), published_days(database))
        incomplete = {str(one.day): one.why for one in known if str(one.day) in wanted}
        yield dg.AssetCheckResult(
            check_name=COMPLETE_CHECK, passed=not incomplete, metadata={"stale": incomplete, "days": len(wanted)}
        )

    return batch_metrics


def _by_spark(
    context: dg.AssetExecutionContext, settings: Settings, source: SourceFile, wanted: Sequence[str]
) -> dg.MaterializeResult[Any]:
    """Computes days that follow one another as a process.

    Raises:
        dg.Failure: The batch layer refused, which it would again.
        DagsterPipesExecutionError: It failed.
    """
    if not wanted:
        return dg.MaterializeResult(metadata={"days": 0})
    # `--from` and `--to` include both days; Dagster runs a range that has gaps as several runs.
    command = [sys.executable, "-m", "batch_layer", "--catalog", str(source.path)]
    command += ["--from", wanted[0], "--to", wanted[-1]]
    client = dg.PipesSubprocessClient(env={**os.environ, **settings.environ()})
    try:
        done = client.run(context=context, command=command)
    except DagsterPipesExecutionError as error:
        if str(error).endswith(f" {REFUSED}"):
            msg = "the batch layer refused; its reason stands above, and in this step's stderr"
            raise dg.Failure(msg, allow_retries=False) from error
        raise
    manifests = done.get_custom_messages()
    rows = rows_by_day(connect(settings, settings.database(source.name)), manifests[0]["run_id"]) if manifests else {}
    for manifest in manifests:
        shown = manifest_metadata(manifest, rows.get(manifest["partition"], 0))
        context.add_asset_metadata(shown, partition_key=manifest["partition"])
    return done.get_materialize_result()


def left_of(context: dg.AssetExecutionContext, key: dg.AssetKey) -> list[str]:
    """The days of a run that are still to be computed: of a second try, those that the first has not published."""
    run, wanted = context.run, list(context.partition_keys)
    same = {run.run_id}
    if run.tags.get("dagster/is_resume_retry") == "true":
        same |= {each for each in (run.parent_run_id, run.root_run_id) if each}
    elif not context.retry_number:
        return wanted
    known = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(key, asset_partitions=wanted), limit=_TRIES_LOOKED_AT * len(wanted)
    )
    done = {record.partition_key for record in known.records if record.run_id in same}
    return [day for day in wanted if day not in done]


def _shown(client: Client) -> dict[str, str]:
    """By day, the run that it shows."""
    return {str(day): run_id for day, (run_id, _) in published_days(client).items()}


def _reconciled(settings: Settings, source: SourceFile, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    exact, compared, certified = (asset_key(source.name, name) for name in MADE)

    @dg.multi_asset(
        name=f"{source.name}__reconcile",
        group_name=source.name,
        retry_policy=_RETRIES,
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        specs=[
            dg.AssetSpec(
                compared,
                deps=[exact, asset_key(source.name, "speed_metrics")],
                owners=list(source.catalog.owners),
                kinds={"clickhouse"},
                description="Speed, expected speed and exact values compared, every difference by cause; the report.",
            ),
            dg.AssetSpec(
                certified,
                deps=[compared],
                owners=list(source.catalog.owners),
                metadata=columns_of(schema.table("certificates")),
                freshness_policy=_certified_in_time(source.catalog),
                kinds={"clickhouse"},
                description="Whether a day's exact values may be relied upon. The views serve them from then on.",
            ),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                RESIDUAL_CHECK,
                asset=compared,
                partitions_def=days,
                description="The speed layer published exactly what the log says that it had to.",
            ),
            dg.AssetCheckSpec(
                CERTIFIED_CHECK,
                asset=certified,
                partitions_def=days,
                description="The batch run read all of its offsets, and its counts close.",
            ),
        ],
    )
    def reconciled(context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
        wanted = [date.fromisoformat(key) for key in context.partition_keys]
        results = reconcile(settings, source.catalog, wanted)
        for result in results:
            day = result.partition.isoformat()
            report = write_report(settings, source.catalog, result.partition, results=[result])
            shown = reconciliation_metadata(result, report.html)
            context.add_asset_metadata(shown, asset_key=compared, partition_key=day)
            context.add_asset_metadata(certificate_metadata(result), asset_key=certified, partition_key=day)
        yield dg.MaterializeResult(asset_key=compared)
        yield dg.MaterializeResult(asset_key=certified)
        yield from checks(source.name, results)

    return reconciled


def _certified_in_time(catalog: Catalog) -> dg.FreshnessPolicy:
    """Yesterday is certified a while after it can be closed."""
    hour, minute = closing_time(catalog)
    hours = CERTIFIED_WITHIN // timedelta(hours=1)
    return dg.FreshnessPolicy.cron(f"{minute} {(hour + hours) % 24} * * *", CERTIFIED_WITHIN, timezone="UTC")


def checks(source: str, results: Sequence[PartitionReconciliation]) -> tuple[dg.AssetCheckResult, dg.AssetCheckResult]:
    """The verdict on the days of a run: on the speed layer, and on the batch run itself."""
    wrong = {each.partition.isoformat(): each.residual for each in results if each.residual}
    waiting = [each.partition.isoformat() for each in results if each.causes.get("not_yet_closed")]
    uncertified = {each.partition.isoformat(): each.message for each in results if not each.certified}
    return (
        dg.AssetCheckResult(
            asset_key=asset_key(source, "reconciliation"),
            check_name=RESIDUAL_CHECK,
            passed=not wrong and not waiting,
            # A speed layer that is still reading is no defect: the check passes once it has caught up.
            severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
            metadata={"residual_by_day": wrong, "days_not_yet_closed": waiting},
        ),
        dg.AssetCheckResult(
            asset_key=asset_key(source, "certificates"),
            check_name=CERTIFIED_CHECK,
            passed=not uncertified,
            metadata={"not_certified": uncertified},
        ),
    )
