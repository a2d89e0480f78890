"""A backfill as people do it: on Dagster's own page, from speed's numbers in the view to those of batch."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from lockstep_shell import Lockstep
from playwright.sync_api import Browser, Page, expect

from infra.catalog_file import load_catalog
from infra.settings import Settings
from infra.stack import stop, up
from orchestration import services

PATIENCE_MS = 240_000.0


@pytest.fixture
def page(browser: Browser, stack: Settings, devices: Path) -> Iterator[Page]:
    """A page of the Dagster that closes the days of the source."""
    parts = services.dagster(stack, devices)
    up(stack, parts, owner_pid=os.getpid())
    context = browser.new_context(
        base_url=f"http://{stack.host}:{stack.dagster_port}", viewport={"width": 1400, "height": 900}
    )
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield context.new_page()
    finally:
        context.close()
        stop(stack, [service.name for service in parts])


def test_a_backfill_from_the_page_ends_in_views_that_show_batch(
    lockstep: Callable[[Path], Lockstep], devices: Path, page: Page, tmp_path: Path
) -> None:
    run, truth = lockstep(devices), tmp_path / "truth.json"
    run("generate", "--events", "5000", "--days", "2", "--truth", str(truth))
    run("speed", "--until-drained")
    first, last = (date.fromisoformat(day) for day in json.loads(truth.read_text())["closed_days"])
    before = _shown(run, first, last)
    assert {row["layer"] for row in before} == {"speed"}
    seen = run.json("backfill", "--from", str(first), "--to", str(last), "--dry-run")
    assert [day["state"] for day in seen["partitions"]] == ["new", "new"]

    source = load_catalog(devices).source
    page.goto(f"/locations/lockstep/jobs/{source}_close_days")
    page.get_by_role("button", name="Materialize all…").click()
    chosen = page.get_by_role("dialog").get_by_role("textbox").first
    chosen.fill(f"[{first}...{last}]")
    chosen.press("Tab")
    page.get_by_role("button", name="Launch backfill").click()
    expect(page.get_by_role("dialog")).to_have_count(0, timeout=PATIENCE_MS)
    page.goto("/runs")
    backfill = page.locator("a[href*='/runs/b/']").first
    backfill.click()
    expect(page.get_by_text("100% completed")).to_be_visible(timeout=PATIENCE_MS)

    page.goto(f"/assets/{source}/batch_metrics?view=partitions&partition={first}")
    for shown in ("checksum", "wall_seconds", "records/counted"):
        expect(page.get_by_text(shown, exact=True).first).to_be_visible(timeout=PATIENCE_MS)
    after = _shown(run, first, last)
    assert {(row["layer"], row["is_final"]) for row in after} == {("batch", True)}
    assert len(after) >= len(before)
    again = run.json("backfill", "--from", str(first), "--to", str(last), "--dry-run", "--stale")
    assert again["partitions"] == []


def _shown(run: Lockstep, first: date, last: date) -> list[dict[str, Any]]:
    """What the view of the source's readings has of some days."""
    span = ("--from", str(first), "--to", str(last + timedelta(days=1)))
    rows: list[dict[str, Any]] = run.json("query", load_catalog(run.catalog).metrics[0].name, *span)["rows"]
    return rows
