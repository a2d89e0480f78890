"""Dagster's definitions: they load anywhere, and a range of days is one run."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from infra.catalog_file import load_catalog
from orchestration.definitions import DEMO_CATALOG, definitions
from orchestration.schedules import closing_time

CLICKSTREAM = Path(__file__).parents[2] / "data" / "clickstream.yaml"
LOAD = """
import sys
import dagster as dg
from orchestration.definitions import defs
dg.Definitions.validate_loadable(defs)
print(*sorted(key.to_user_string() for key in defs.resolve_all_asset_keys()))
assert "pyspark" not in sys.modules, "Spark belongs in the process that Pipes starts"
"""


@pytest.mark.parametrize("catalog", [None, CLICKSTREAM])
def test_every_definition_loads_in_a_fresh_interpreter(catalog: Path | None, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    if catalog is not None:
        environment["LOCKSTEP_CATALOG"] = str(catalog)
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == ["batch_metrics", "certificates", "event_log", "reconciliation"]


@pytest.fixture(scope="module")
def shop() -> dg.Definitions:
    return definitions(DEMO_CATALOG)


def test_a_range_of_days_is_one_run(shop: dg.Definitions) -> None:
    graph = shop.resolve_asset_graph()
    for name in ("batch_metrics", "reconciliation", "certificates"):
        assert graph.get(dg.AssetKey(name)).backfill_policy == dg.BackfillPolicy.single_run()


def test_partitions_are_utc_days_that_reach_back_to_the_first_day(shop: dg.Definitions) -> None:
    days = shop.resolve_asset_graph().get(dg.AssetKey("batch_metrics")).partitions_def
    assert days.get_first_partition_key() == "2024-01-01"
    assert days.timezone == "UTC"


def test_every_day_is_checked_for_its_residual_and_its_evidence(shop: dg.Definitions) -> None:
    keys = shop.resolve_asset_graph().asset_check_keys
    assert {key.name for key in keys} == {"residual_is_zero", "evidence_closes"}


def test_the_night_job_runs_by_itself_after_lateness_has_passed(shop: dg.Definitions) -> None:
    schedule = shop.resolve_schedule_def("nightly")
    assert schedule.cron_schedule == "16 1 * * *"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


@pytest.mark.parametrize(("lateness", "at"), [(timedelta(0), (0, 16)), (timedelta(hours=36), (23, 59))])
def test_closing_follows_the_catalog(lateness: timedelta, at: tuple[int, int]) -> None:
    from dataclasses import replace  # noqa: PLC0415

    assert closing_time(replace(load_catalog(DEMO_CATALOG), allowed_lateness=lateness)) == at
