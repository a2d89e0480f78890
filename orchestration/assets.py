"""What Dagster materializes of a source: a day's exact metrics, and their reconciliation with the speed layer.

A source's assets have its name before theirs, `shop/batch_metrics`, and are a group of that name.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from batch_layer.archiving import archiver_of, catch_up, compare
from batch_layer.planning import refresh_index
from batch_layer.retention import prune
from batch_layer.stale import days_in
from infra.clickhouse import connect
from infra.settings import Settings
from orchestration.sources import SourceFile
from reconciliation.reconcile import reconcile
from reconciliation.report import write_report
from reconciliation.result import PartitionReconciliation

MADE = ("batch_metrics", "reconciliation", "certificates")
"""What a run for a day makes, in this order; names without that of the source."""

ARCHIVE_CHECK = "archive_is_whole"
OF_THE_LOG = ("log_manifest", "archive")
"""What follows the log itself, whatever the day."""

RESIDUAL_CHECK = "residual_is_zero"
CERTIFIED_CHECK = "evidence_closes"


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
    log = dg.AssetSpec(
        asset_key(source.name, "event_log"),
        group_name=source.name,
        kinds={"kafka"},
        description=f"Every event of `{source.name}`, in topic `{source.catalog.topic}`. Both layers read it.",
        metadata={"topic": source.catalog.topic, "brokers": settings.bootstrap},
    )
    served = dg.AssetSpec(
        asset_key(source.name, "serving_views"),
        deps=[asset_key(source.name, "certificates")],
        group_name=source.name,
        kinds={"clickhouse"},
        description=f"One view per metric and grain in database `{settings.database(source.name)}`: each window from "
        "the batch layer once its day is certified, from the speed layer before.",
    )
    of_the_log = [_log_manifest(settings, source), _archive(settings, source)]
    of_days = [_batch_metrics(settings, source, days), _reconciled(settings, source, days)]
    return [log, *of_the_log, *of_days, served]


def _log_manifest(settings: Settings, source: SourceFile) -> dg.AssetsDefinition:
    @dg.asset(
        name="log_manifest",
        key_prefix=source.name,
        deps=[asset_key(source.name, "event_log")],
        group_name=source.name,
        kinds={"clickhouse"},
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
        kinds={"parquet"},
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
    @dg.asset(
        name="batch_metrics",
        key_prefix=source.name,
        deps=[asset_key(source.name, name) for name in ("event_log", "log_manifest", "archive")],
        group_name=source.name,
        kinds={"pyspark", "clickhouse"},
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        description=f"Exact values per day of {', '.join(metric.name for metric in source.catalog.shown)}.",
    )
    def batch_metrics(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        """Run Spark outside this process, by the command that a cluster would be given too."""
        first, last = context.partition_keys[0], context.partition_keys[-1]
        # `--from` and `--to` include both days; Dagster runs a range that has gaps as several runs.
        command = [sys.executable, "-m", "batch_layer", "--catalog", str(source.path), "--from", first, "--to", last]
        client = dg.PipesSubprocessClient(env={**os.environ, **settings.environ()})
        done = client.run(context=context, command=command)
        for manifest in done.get_custom_messages():
            context.add_asset_metadata(manifest_metadata(manifest), partition_key=manifest["partition"])
        database = connect(settings, settings.database(source.name))
        dropped = prune(database, timedelta(days=settings.runs_kept_days), datetime.now(UTC))
        context.log.info(f"rows of {len(dropped)} outdated runs dropped")
        return done.get_materialize_result()

    return batch_metrics


def _reconciled(settings: Settings, source: SourceFile, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    exact, compared, certified = (asset_key(source.name, name) for name in MADE)

    @dg.multi_asset(
        name=f"{source.name}__reconcile",
        group_name=source.name,
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        specs=[
            dg.AssetSpec(
                compared,
                deps=[exact],
                kinds={"clickhouse"},
                description="Speed, expected speed and exact values compared, every difference by cause; the report.",
            ),
            dg.AssetSpec(
                certified,
                deps=[compared],
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


def manifest_metadata(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the Dagster page of a day shows of the run that computed it."""
    offsets = dg.MetadataValue.table(
        [
            dg.TableRecord({name: each[name] for name in ("topic_partition", "start", "end", "log_begin", "log_end")})
            for each in manifest["ranges"]
        ]
    )
    counts = {f"records/{name}": number for name, number in manifest["dispositions"].items()}
    told = ("run_id", "events", "outside", "checksum", "catalog_version", "code_version", "wall_seconds", "cpu_seconds")
    return {"offsets": offsets, **counts, **{name: manifest[name] for name in told}}


def reconciliation_metadata(result: PartitionReconciliation, report: Path) -> dict[str, Any]:
    """What the Dagster page of a day shows: the report, the residual and the events or rows by cause."""
    return {
        "report": dg.MetadataValue.url(report.absolute().as_uri()),
        "report_path": dg.MetadataValue.path(report),
        "residual": result.residual,
        "verdict": result.verdict,
        "message": result.message or "none",
        **{f"cause/{cause}": number for cause, number in result.causes.items()},
    }


def certificate_metadata(result: PartitionReconciliation) -> dict[str, Any]:
    """Whether the day is certified, and for which batch run."""
    run = result.examined.publication.run_id if result.examined else "none"
    return {"certified": result.certified, "run_id": run, "verdict": result.verdict}
