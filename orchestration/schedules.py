"""When Dagster runs by itself: every night, as soon as the day before is closed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from metrics.catalog import Catalog
from orchestration.assets import MADE, asset_key
from orchestration.dagster_home import job_of

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


def closing_time(catalog: Catalog) -> tuple[int, int]:
    """Hour and minute (UTC) at which yesterday is closed: midnight, lateness, out-of-orderness and a margin."""
    after = min(catalog.allowed_lateness + catalog.out_of_orderness + _MARGIN, _LONGEST)
    minutes = -(-after // timedelta(minutes=1))
    return minutes // 60, minutes % 60
