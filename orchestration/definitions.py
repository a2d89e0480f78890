"""The Dagster code location: what `dagster` loads. The catalog is the one that `LOCKSTEP_CATALOG` names."""

import os
import warnings
from pathlib import Path

import dagster as dg

from infra.catalog_file import load_catalog
from infra.settings import load_settings
from orchestration.assets import assets
from orchestration.schedules import close_days, nightly

CATALOG_VARIABLE = "LOCKSTEP_CATALOG"
DEMO_CATALOG = Path(__file__).resolve().parent / "catalogs" / "shop.yaml"


def definitions(catalog_path: Path) -> dg.Definitions:
    """Assets, checks, job and schedule for one catalog.

    Raises:
        CatalogError: The catalog breaks a rule.
        SettingsError: A `LOCKSTEP_` variable is wrong.
    """
    settings = load_settings()
    catalog = load_catalog(catalog_path)
    job = close_days()
    with warnings.catch_warnings():
        # Two parameters may still change in a later Dagster; requirements.lock pins this one.
        warnings.simplefilter("ignore", (dg.BetaWarning, dg.PreviewWarning))
        defined = assets(settings, catalog, catalog_path)
    return dg.Definitions(
        assets=defined,
        jobs=[job],
        schedules=[nightly(catalog, job)],
        # Two steps that wait for each other need no process of their own each.
        executor=dg.in_process_executor,
    )


defs = definitions(Path(os.environ.get(CATALOG_VARIABLE) or DEMO_CATALOG).absolute())
