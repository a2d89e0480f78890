"""When Dagster runs by itself: every night, as soon as the day before is closed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from metrics.catalog import Catalog
from orchestration.dagster_home import JOB

if TYPE_CHECKING:  # Dagster gives these two no public name
    from dagster._core.definitions.partitions.partitioned_schedule import UnresolvedPartitionedAssetScheduleDefinition
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_MARGIN = timedelta(minutes=15)
_LONGEST = timedelta(hours=23, minutes=59)


def close_days() -> UnresolvedAssetJobDefinition:
    """The job that closes a day, or a range of days: batch run, reconciliation, certificate."""
    return dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.assets("batch_metrics", "reconciliation", "certificates"),
        description="Recompute days exactly from the log, compare them with the speed layer, certify them.",
    )


def nightly(
    catalog: Catalog, job: UnresolvedAssetJobDefinition
) -> UnresolvedPartitionedAssetScheduleDefinition | dg.ScheduleDefinition:
    """Close yesterday once nothing that counts can reach it any more."""
    hour, minute = closing_time(catalog)
    return dg.build_schedule_from_partitioned_job(
        job,
        name="nightly",
        hour_of_day=hour,
        minute_of_hour=minute,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Closes yesterday at {hour:02}:{minute:02} UTC, when its lateness has passed.",
    )


def closing_time(catalog: Catalog) -> tuple[int, int]:
    """Hour and minute (UTC) at which yesterday is closed: midnight, lateness, out-of-orderness and a margin."""
    after = min(catalog.allowed_lateness + catalog.out_of_orderness + _MARGIN, _LONGEST)
    minutes = -(-after // timedelta(minutes=1))
    return minutes // 60, minutes % 60
