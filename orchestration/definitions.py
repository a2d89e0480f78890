"""The Dagster code location: what `dagster` loads. Its sources are those that `LOCKSTEP_CATALOG` names."""

import os
import warnings
from pathlib import Path

import dagster as dg

from infra.settings import load_settings
from orchestration.assets import asset_checks, assets
from orchestration.schedules import (
    check_speed,
    close_days,
    follow_log,
    hourly,
    nightly,
    speed_lag_sensor,
    stale_days_sensor,
)
from orchestration.sources import DEMO_CATALOGS, load_sources

CATALOG_VARIABLE = "LOCKSTEP_CATALOG"


def definitions(catalog_path: Path) -> dg.Definitions:
    """Assets, checks, jobs, schedules and sensors for each source of a catalog file or directory.

    Sources share nothing but the code location: one that cannot be computed holds up no other.

    Raises:
        CatalogError: A catalog breaks a rule.
        SettingsError: A `LOCKSTEP_` variable is wrong.
    """
    settings = load_settings()
    sources = load_sources(catalog_path)
    following = {source.name: follow_log(source.name) for source in sources}
    checking = {source.name: check_speed(source.name) for source in sources}
    jobs = {source.name: close_days(source.name) for source in sources}
    with warnings.catch_warnings():
        # Two parameters may still change in a later Dagster; requirements.lock pins this one.
        warnings.simplefilter("ignore", (dg.BetaWarning, dg.PreviewWarning))
        defined = [asset for source in sources for asset in assets(settings, source)]
    return dg.Definitions(
        assets=defined,
        jobs=[*jobs.values(), *following.values(), *checking.values()],
        asset_checks=[check for source in sources for check in asset_checks(settings, source)],
        schedules=[
            *(nightly(settings, source, jobs[source.name]) for source in sources),
            *(hourly(source.name, following[source.name]) for source in sources),
        ],
        sensors=[
            *(stale_days_sensor(settings, source, jobs[source.name]) for source in sources),
            *(speed_lag_sensor(settings, source, checking[source.name]) for source in sources),
        ],
        # Two steps that wait for each other need no process of their own each.
        executor=dg.in_process_executor,
    )


defs = definitions(Path(os.environ.get(CATALOG_VARIABLE) or DEMO_CATALOGS).absolute())
