"""Real input: an e-commerce site's clickstream through both layers gives the independently computed numbers."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from lockstep_shell import Lockstep

from infra.settings import Settings

DATA = Path(__file__).resolve().parents[1] / "data"
COPIES = 30


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((DATA / "clickstream.expected.json").read_text())


def test_both_layers_give_the_known_numbers(
    lockstep: Callable[[Path], Lockstep], stack: Settings, tmp_path: Path, unique: str, expected: dict[str, Any]
) -> None:
    catalog = tmp_path / "clickstream.yaml"
    text = (DATA / "clickstream.yaml").read_text()
    text = text.replace("source: clickstream\n", f"source: {unique}\n")
    catalog.write_text(text.replace("topic: events.clickstream.v1\n", f"topic: {unique}\n"))
    run = lockstep(catalog)
    first, last = min(expected["events_by_day"]), max(expected["events_by_day"])

    ingested = run.json("ingest", str(DATA / "clickstream.csv.gz"))
    assert (ingested["sent"], ingested["rejected"]) == (expected["rows"], 0)
    run("speed", "--until-drained")

    batch = run.json("batch", "--from", first, "--to", last)["partitions"]
    assert len(batch) == (date.fromisoformat(last) - date.fromisoformat(first)) // timedelta(days=1) + 1
    assert sum(day["events"] for day in batch) == expected["distinct_rows"]
    assert sum(day["duplicates"] for day in batch) == COPIES
    assert sum(day["dead_letters"] for day in batch) == 0

    days = run.json("reconcile", "--from", first, "--to", last)
    assert all(day["certified"] and not day["residual"] for day in days["partitions"])
    assert sum(day["causes"]["duplicate"] for day in days["partitions"]) == COPIES

    for layer in ("served", "batch", "speed"):
        _matches(run, layer, expected)


def _matches(run: Lockstep, layer: str, expected: dict[str, Any]) -> None:
    def rows(metric: str, grain: str = "1d") -> list[dict[str, Any]]:
        return run.json("query", metric, "--grain", grain, "--layer", layer)["rows"]

    assert {row["window_start"][:10]: row["value"] for row in rows("events")} == expected["events_by_day"]
    assert _summed(rows("events_by_type"), "event") == expected["events_by_type"]
    assert _summed(rows("purchases_by_channel"), "acquisition_channel") == expected["purchases_by_channel"]
    distinct = {row["window_start"][:10]: row for row in rows("distinct_users")}
    assert distinct.keys() == expected["distinct_users_by_day"].keys()
    for day, known in expected["distinct_users_by_day"].items():
        row = distinct[day]
        if layer != "speed":
            assert row["value"] == known
        else:
            assert row["lower"] <= known <= row["upper"], (day, row, known)


def _summed(rows: list[dict[str, Any]], dimension: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for row in rows:
        total[row["dimensions"][dimension]] += row["value"]
    return dict(total)
