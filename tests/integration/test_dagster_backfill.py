"""A backfill over a range of days, started as Dagster's page starts it, on the real web server and daemon."""

import os
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import psutil
import pytest

from infra.catalog_file import load_catalog
from infra.clickhouse import connect, quote
from infra.settings import Settings
from infra.stack import up
from orchestration import services
from orchestration.dagster_client import DagsterClient
from orchestration.generator import GenerateOptions, generate
from orchestration.sources import DEMO_CATALOGS
from reconciliation.report import reports_dir

PATIENCE_S = 240
POLL_S = 0.5


@pytest.fixture
def shop(tmp_path: Path, unique: str) -> Path:
    """The demo's catalog under a source and a topic of this test's own."""
    path = tmp_path / "shop.yaml"
    text = (DEMO_CATALOGS / "shop.yaml").read_text().replace("source: shop\n", f"source: {unique}\n")
    path.write_text(text.replace("topic: events.shop.v1 ", f"topic: {unique} "))
    assert load_catalog(path).topic == unique
    return path


@pytest.fixture
def dagster(kafka: Settings, clickhouse: Settings, shop: Path) -> Iterator[DagsterClient]:
    catalog = load_catalog(shop)
    services.prepare_source(kafka, catalog)
    # A directory of catalogs with another source in it, which nobody asks for and whose topic is not even there.
    (shop.with_name("other.yaml")).write_text((DEMO_CATALOGS / "devices.yaml").read_text())
    up(kafka, services.dagster(kafka, shop.parent), owner_pid=os.getpid())
    yield DagsterClient(kafka)


def test_a_backfill_over_days_is_one_run_that_publishes_and_certifies_each(
    dagster: DagsterClient, clickhouse: Settings, shop: Path
) -> None:
    catalog = load_catalog(shop)
    made = generate(clickhouse, catalog, GenerateOptions(events=3_000, days=3, seed=7))
    days = [date.fromisoformat(day) for day in made.truth["closed_days"]]

    backfill = dagster.backfill(catalog.source, days)
    state = _ended(dagster, backfill)

    assert state["status"] == "COMPLETED_SUCCESS", [dagster.failure(run["runId"]) for run in state["runs"]]
    assert len(state["runs"]) == 1
    client, database = connect(clickhouse), quote(clickhouse.database(catalog.source))
    runs = client.query(f"SELECT DISTINCT run_id FROM {database}.batch_runs WHERE status = 'complete'").result_rows
    assert len(runs) == 1
    published = client.query(f"SELECT partition, run_id FROM {database}.publications ORDER BY partition").result_rows
    assert published == [(day, runs[0][0]) for day in days]
    certified = client.query(f"SELECT partition, certified FROM {database}.certificates ORDER BY partition").result_rows
    assert certified == [(day, True) for day in days]
    exact = client.query(f"SELECT sum(value) FROM {database}.{quote('events_1d')} WHERE layer = 'batch'").result_rows
    assert exact[0][0] == sum(made.truth["by_day"][str(day)]["exact"]["events"] for day in days)
    assert all((reports_dir(clickhouse, catalog.source) / f"{day}.html").exists() for day in days)


def test_a_run_that_is_killed_is_tried_again_for_the_days_that_it_has_not_published(
    kafka: Settings, clickhouse: Settings, unique: str, tmp_path: Path
) -> None:
    path = tmp_path / "devices.yaml"
    text = (DEMO_CATALOGS / path.name).read_text().replace("source: devices\n", f"source: {unique}\n")
    path.write_text(text.replace("topic: events.devices.v1", f"topic: {unique}"))
    catalog = load_catalog(path)
    # so that each day is a portion of its own
    settings = kafka.model_copy(update={"portion_events": 1})
    services.prepare_source(settings, catalog)
    up(settings, services.dagster(settings, path), owner_pid=os.getpid())
    made = generate(clickhouse, catalog, GenerateOptions(events=2_000, days=3, seed=8))
    days = [date.fromisoformat(day) for day in made.truth["closed_days"]]
    dagster, client = DagsterClient(settings), connect(clickhouse, clickhouse.database(catalog.source))

    backfill = dagster.backfill(catalog.source, days)
    _until(lambda: bool(client.query("SELECT count() FROM publications").result_rows[0][0]))
    (batch,) = (
        process for process in psutil.process_iter(["cmdline"])
        if {"batch_layer", str(path)} <= {*(process.info["cmdline"] or ())}
    )  # fmt: skip
    batch.kill()
    state = _ended(dagster, backfill)

    assert state["status"] == "COMPLETED_SUCCESS", [dagster.failure(run["runId"]) for run in state["runs"]]
    published = client.query("SELECT partition, run_id FROM publications ORDER BY published_at").result_rows
    assert [day for day, _ in published] == days
    assert (published[0][1] != published[-1][1], len({run_id for _, run_id in published})) == (True, 2)
    certified = client.query("SELECT partition FROM certificates WHERE certified ORDER BY partition").result_rows
    assert [day for (day,) in certified] == days


def _until(done: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / POLL_S)):
        if done():
            return
        pause.wait(POLL_S)
    pytest.fail("it did not come to that in time")


def _ended(dagster: DagsterClient, backfill: str) -> dict[str, object]:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / POLL_S)):
        state = dagster.backfill_state(backfill)
        if state["status"] not in {"REQUESTED", "CANCELING"}:
            return state
        pause.wait(POLL_S)
    pytest.fail(f"the backfill is still {state}")
