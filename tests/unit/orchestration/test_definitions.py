"""Dagster's definitions: they load anywhere, sources keep apart, and a range of days is one run."""

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from infra.catalog_file import load_catalog
from orchestration.closing import closing_time
from orchestration.definitions import definitions
from orchestration.sources import DEMO_CATALOGS

CLICKSTREAM = Path(__file__).parents[2] / "data" / "clickstream.yaml"
LOAD = """
import sys
import dagster as dg
from orchestration.definitions import defs
dg.Definitions.validate_loadable(defs)
print(*sorted(key.to_user_string() for key in defs.resolve_all_asset_keys()))
assert "pyspark" not in sys.modules, "Spark belongs in the process that Pipes starts"
"""


NAMES = (
    *("archive", "batch_metrics", "certificates", "event_log", "log_manifest", "reconciliation", "serving_views"),
    "speed_metrics",
)
LINEAGE = {
    "event_log": set(),
    "speed_metrics": {"event_log"},
    "log_manifest": {"event_log"},
    "archive": {"event_log"},
    "batch_metrics": {"event_log"},
    "reconciliation": {"batch_metrics", "speed_metrics"},
    "certificates": {"reconciliation"},
    "serving_views": {"certificates", "speed_metrics"},
}


@pytest.mark.parametrize(
    ("catalog", "sources"),
    [(None, ["devices", "shop"]), (CLICKSTREAM, ["clickstream"]), (DEMO_CATALOGS / "shop.yaml", ["shop"])],
)
def test_every_definition_loads_in_a_fresh_interpreter(
    catalog: Path | None, sources: list[str], tmp_path: Path
) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    if catalog is not None:
        environment["LOCKSTEP_CATALOG"] = str(catalog)
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == [f"{source}/{name}" for source in sources for name in NAMES]


@pytest.fixture(scope="module")
def demo() -> dg.Definitions:
    return definitions(DEMO_CATALOGS)


SOURCES = pytest.mark.parametrize("source", ["shop", "devices"])


@SOURCES
def test_a_range_of_days_is_one_run(demo: dg.Definitions, source: str) -> None:
    graph = demo.resolve_asset_graph()
    for name in ("batch_metrics", "reconciliation", "certificates"):
        assert graph.get(dg.AssetKey([source, name])).backfill_policy == dg.BackfillPolicy.single_run()


@SOURCES
def test_partitions_are_utc_days_that_reach_back_to_the_first_day(demo: dg.Definitions, source: str) -> None:
    days = demo.resolve_asset_graph().get(dg.AssetKey([source, "batch_metrics"])).partitions_def
    assert days.get_first_partition_key() == "2024-01-01"
    assert days.timezone == "UTC"


@SOURCES
def test_what_a_source_needs_is_its_own(demo: dg.Definitions, source: str) -> None:
    graph = demo.resolve_asset_graph()
    own = [node for node in graph.asset_nodes if node.group_name == source]
    assert len(own) == len(NAMES)
    assert {key.path[0] for node in own for key in node.parent_keys} == {source}


@SOURCES
def test_the_lineage_is_that_of_the_architecture(demo: dg.Definitions, source: str) -> None:
    graph = demo.resolve_asset_graph()
    found = {name: {key.path[1] for key in graph.get(dg.AssetKey([source, name])).parent_keys} for name in NAMES}
    assert found == LINEAGE


@SOURCES
def test_every_asset_says_whom_to_ask_and_what_it_is(demo: dg.Definitions, source: str) -> None:
    nodes = [demo.resolve_asset_graph().get(dg.AssetKey([source, name])) for name in NAMES]
    assert {owner for node in nodes for owner in node.owners} == {f"team:{source}"}
    assert all(node.description and node.kinds and node.owners for node in nodes)


@SOURCES
def test_what_is_in_tables_shows_its_columns(demo: dg.Definitions, source: str) -> None:
    graph = demo.resolve_asset_graph()
    of = {name: graph.get(dg.AssetKey([source, name])).metadata.get("dagster/column_schema") for name in NAMES}
    shown = {name: {column.name for column in schema.columns} for name, schema in of.items() if schema}
    assert {"topic_partition", "block", "records"} <= shown["log_manifest"]
    assert {"partition", "certified", "verdict"} <= shown["certificates"]
    metrics = load_catalog(DEMO_CATALOGS / f"{source}.yaml").metrics
    assert {f"batch_{metric.name}.run_id" for metric in metrics} <= shown["batch_metrics"]


@SOURCES
def test_certificates_that_are_not_renewed_every_night_are_overdue(demo: dg.Definitions, source: str) -> None:
    policy = demo.resolve_asset_graph().get(dg.AssetKey([source, "certificates"])).freshness_policy
    assert (policy.deadline_cron, policy.lower_bound_delta) == ("16 3 * * *", timedelta(hours=2))


def test_every_day_is_checked_for_its_residual_and_its_evidence(demo: dg.Definitions) -> None:
    keys = demo.resolve_asset_graph().asset_check_keys
    assert {(key.asset_key.to_user_string(), key.name) for key in keys} == {
        (f"{source}/{name}", check)
        for source in ("shop", "devices")
        for name, check in (
            ("archive", "archive_is_whole"),
            ("batch_metrics", "all_events_are_in"),
            ("speed_metrics", "keeps_up"),
            ("reconciliation", "residual_is_zero"),
            ("certificates", "evidence_closes"),
        )
    }


@SOURCES
def test_the_night_job_runs_by_itself_after_lateness_has_passed(demo: dg.Definitions, source: str) -> None:
    schedule = demo.resolve_schedule_def(f"{source}_nightly")
    assert schedule.cron_schedule == "16 1 * * *"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


@SOURCES
def test_the_night_job_closes_days_of_its_source_alone(demo: dg.Definitions, source: str) -> None:
    made = demo.resolve_job_def(f"{source}_close_days").asset_layer.executable_asset_keys
    assert {key.path[0] for key in made} == {source}


@pytest.mark.parametrize(("lateness", "at"), [(timedelta(0), (0, 16)), (timedelta(hours=36), (23, 59))])
def test_closing_follows_the_catalog(lateness: timedelta, at: tuple[int, int]) -> None:
    shop = load_catalog(DEMO_CATALOGS / "shop.yaml")
    assert closing_time(replace(shop, allowed_lateness=lateness)) == at
