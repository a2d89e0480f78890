"""Real input: an e-commerce site's clickstream through both layers gives the independently computed numbers."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from lockstep_shell import Lockstep

from infra.settings import Settings

DATA = Path(__file__).resolve().parents[1] / "data"
COPIES = 30
CERTIFIED_FROM = "2024-06-15"
"""Days from here on are served from batch, those before from speed."""


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((DATA / "clickstream.expected.json").read_text())


def test_both_layers_give_the_known_numbers(
    lockstep: Callable[[Path], Lockstep], stack: Settings, tmp_path: Path, unique: str, expected: dict[str, Any]
) -> None:
    catalog = tmp_path / "clickstream.yaml"
    text = (DATA / "clickstream_full.yaml").read_text()
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

    days = run.json("reconcile", "--from", CERTIFIED_FROM, "--to", last)["partitions"]
    assert all(day["certified"] and not day["residual"] for day in days)
    assert sum(day["causes"]["duplicate"] for day in days) == sum(
        day["duplicates"] for day in batch if day["partition"] >= CERTIFIED_FROM
    )

    for layer in ("served", "batch", "speed"):
        _matches(run, layer, expected)


def _matches(run: Lockstep, layer: str, expected: dict[str, Any]) -> None:
    def rows(metric: str, grain: str = "1d") -> list[dict[str, Any]]:
        query = ("query", metric, "--grain", grain, "--layer", layer, "--limit", "100000")
        return run.json(*query)["rows"]

    assert {row["window_start"][:10]: row["value"] for row in rows("events")} == expected["events_by_day"]
    assert {_berlin_day(row): row["value"] for row in rows("events", "day_europe_berlin")} == expected[
        "events_by_day_europe_berlin"
    ]
    assert len(rows("events", "5m")) == expected["non_empty_5m_tumbling_windows"]
    assert max(row["value"] for row in rows("events", "1m")) == expected["max_events_in_a_minute"]
    assert _summed(rows("events_by_type"), "event") == expected["events_by_type"]
    assert _summed(rows("purchases_by_channel"), "acquisition_channel") == expected["purchases_by_channel"]
    assert _summed(rows("purchases_by_channel", "global"), "acquisition_channel") == expected["purchases_by_channel"]
    _sessions_match(rows("sessions", "session"), expected)
    distinct = {row["window_start"][:10]: row for row in rows("distinct_users")}
    assert distinct.keys() == expected["distinct_users_by_day"].keys()
    for day, known in expected["distinct_users_by_day"].items():
        assert _says(distinct[day], known), (day, distinct[day], known)
    (everyone,) = rows("distinct_users", "global")
    assert _says(everyone, expected["distinct_users"]), everyone


def _sessions_match(sessions: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert len(sessions) == expected["sessions_gap_30m"]
    assert Counter(row["dimensions"]["platform"] for row in sessions) == expected["sessions_by_platform_gap_30m"]
    assert sum(row["value"] for row in sessions) == expected["distinct_rows"]


def _says(row: dict[str, Any], known: int) -> bool:
    """Whether a row gives the known number: within its bounds if it is from speed, to the last digit from batch."""
    return row["lower"] <= known <= row["upper"] if row["layer"] == "speed" else row["value"] == known


def _berlin_day(row: dict[str, Any]) -> str:
    return datetime.fromisoformat(row["window_start"]).astimezone(ZoneInfo("Europe/Berlin")).date().isoformat()


def _summed(rows: list[dict[str, Any]], dimension: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for row in rows:
        total[row["dimensions"][dimension]] += row["value"]
    return dict(total)
