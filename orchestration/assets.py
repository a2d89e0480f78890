"""What Dagster materializes: a day's exact metrics, and their reconciliation with the speed layer."""

import os
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from infra.settings import Settings
from metrics.catalog import Catalog
from reconciliation.reconcile import reconcile
from reconciliation.report import write_report
from reconciliation.result import PartitionReconciliation

GROUP = "lockstep"
RESIDUAL_CHECK = "residual_is_zero"
CERTIFIED_CHECK = "evidence_closes"


def days_of(settings: Settings) -> dg.DailyPartitionsDefinition:
    """One partition per closed UTC day, from `LOCKSTEP_FIRST_DAY` on."""
    return dg.DailyPartitionsDefinition(start_date=settings.first_day.isoformat(), timezone="UTC")


def assets(settings: Settings, catalog: Catalog, catalog_path: Path) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The event log as Dagster sees it, the batch layer's metrics, and what reconciliation makes of them.

    A range of days is one Dagster run and one Spark run: starting Spark costs as much as several days of events.
    """
    days = days_of(settings)
    log = dg.AssetSpec(
        "event_log",
        group_name=GROUP,
        kinds={"kafka"},
        description=f"Every event of `{catalog.source}`, in topic `{catalog.topic}`. Both layers read it.",
        metadata={"topic": catalog.topic, "brokers": settings.bootstrap},
    )
    return [log, _batch_metrics(settings, catalog, catalog_path, days), _reconciled(settings, catalog, days)]


def _batch_metrics(
    settings: Settings, catalog: Catalog, catalog_path: Path, days: dg.DailyPartitionsDefinition
) -> dg.AssetsDefinition:
    @dg.asset(
        name="batch_metrics",
        deps=["event_log"],
        group_name=GROUP,
        kinds={"pyspark", "clickhouse"},
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        description=f"Exact values of the metrics {', '.join(metric.name for metric in catalog.metrics)}, per day.",
    )
    def batch_metrics(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        """Run Spark outside this process, by the command that a cluster would be given too."""
        first, last = context.partition_keys[0], context.partition_keys[-1]
        # `--from` and `--to` include both days; Dagster runs a range that has gaps as several runs.
        command = [sys.executable, "-m", "batch_layer", "--catalog", str(catalog_path), "--from", first, "--to", last]
        client = dg.PipesSubprocessClient(env={**os.environ, **settings.environ()})
        return client.run(context=context, command=command).get_materialize_result()

    return batch_metrics


def _reconciled(settings: Settings, catalog: Catalog, days: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name="reconcile",
        group_name=GROUP,
        partitions_def=days,
        backfill_policy=dg.BackfillPolicy.single_run(),
        specs=[
            dg.AssetSpec(
                "reconciliation",
                deps=["batch_metrics"],
                kinds={"clickhouse"},
                description="Speed, expected speed and exact values compared, every difference by cause; the report.",
            ),
            dg.AssetSpec(
                "certificates",
                deps=["batch_metrics"],
                kinds={"clickhouse"},
                description="Whether a day's exact values may be relied upon. The views serve them from then on.",
            ),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                RESIDUAL_CHECK,
                asset="reconciliation",
                partitions_def=days,
                description="The speed layer published exactly what the log says that it had to.",
            ),
            dg.AssetCheckSpec(
                CERTIFIED_CHECK,
                asset="certificates",
                partitions_def=days,
                description="The batch run read all of its offsets, and its counts close.",
            ),
        ],
    )
    def reconciled(context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
        wanted = [date.fromisoformat(key) for key in context.partition_keys]
        results = reconcile(settings, catalog, wanted)
        for result in results:
            key = result.partition.isoformat()
            report = write_report(settings, catalog, result.partition, results=[result])
            context.add_asset_metadata(
                reconciliation_metadata(result, report.html), asset_key="reconciliation", partition_key=key
            )
            context.add_asset_metadata(certificate_metadata(result), asset_key="certificates", partition_key=key)
        yield dg.MaterializeResult(asset_key="reconciliation")
        yield dg.MaterializeResult(asset_key="certificates")
        yield from checks(results)

    return reconciled


def checks(results: Sequence[PartitionReconciliation]) -> tuple[dg.AssetCheckResult, dg.AssetCheckResult]:
    """The verdict on the days of a run: on the speed layer, and on the batch run itself."""
    wrong = {each.partition.isoformat(): each.residual for each in results if each.residual}
    waiting = [each.partition.isoformat() for each in results if each.causes.get("not_yet_closed")]
    uncertified = {each.partition.isoformat(): each.message for each in results if not each.certified}
    return (
        dg.AssetCheckResult(
            asset_key="reconciliation",
            check_name=RESIDUAL_CHECK,
            passed=not wrong and not waiting,
            # A speed layer that is still reading is no defect: the check passes once it has caught up.
            severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
            metadata={"residual_by_day": wrong, "days_not_yet_closed": waiting},
        ),
        dg.AssetCheckResult(
            asset_key="certificates",
            check_name=CERTIFIED_CHECK,
            passed=not uncertified,
            metadata={"not_certified": uncertified},
        ),
    )


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
