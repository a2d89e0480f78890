"""`lockstep demo` as a new user runs it, twice, on a stack of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lockstep_shell import Lockstep

from infra.clickhouse import connect, quote
from infra.settings import Settings
from infra.stack import down
from orchestration.sources import DEMO_CATALOGS

SERVICES = {
    "kafka", "clickhouse", "flink-jobserver", "flink-expansion", "beam-workers",
    "speed-shop", "speed-devices", "live-shop", "live-devices", "api",
    "dagster-code", "dagster-webserver", "dagster-daemon",
}  # fmt: skip


SOURCES = {"shop": "events", "devices": "readings"}
"""Each with a metric of its own."""


@pytest.fixture
def fresh(new_settings: Callable[..., Settings], tmp_path: Path) -> Iterator[Settings]:
    settings = new_settings(tmp_path / "data")
    try:
        yield settings
    finally:
        down(settings)


def test_the_demo_ends_certified_and_a_second_one_changes_nothing_that_was_right(fresh: Settings) -> None:
    run = Lockstep(fresh, DEMO_CATALOGS)

    first = run("demo", "--events", "20000")
    services = run.json("status")["services"]
    assert {each["name"] for each in services} == SERVICES
    assert {each["state"] for each in services} == {"running"}
    for shown in (
        "unique_visitors",
        "readings",
        "batch",
        "speed",
        "drift",
        f":{fresh.api_port}",
        f":{fresh.dagster_port}",
    ):
        assert shown in first
    told = [line for line in first.splitlines() if line.startswith("ground truth")]
    assert len(told) == len(SOURCES)
    for line in told:
        assert "✓" in line
        assert "x" not in line.split()
    reports = [Path(line.split()[1]) for line in first.splitlines() if line.startswith("report ")]
    assert {report.parent.name for report in reports} == set(SOURCES)
    assert all(report.exists() for report in reports)

    before = _right(fresh)
    second = run("demo", "--events", "20000")
    assert second.count("3 days are certified already") == len(SOURCES)
    assert second.count("so none are made") == len(SOURCES)
    assert _right(fresh) == before

    run("down")
    assert run.json("status") == {"services": []}


def _right(settings: Settings) -> list[object]:
    """Everything that a second demo must leave alone: runs, publications, certificates, exact values."""
    client = connect(settings)
    return [
        client.query(f"SELECT * FROM {quote(settings.database(source))}.{table} ORDER BY ALL").result_rows
        for source, metric in SOURCES.items()
        for table in ("batch_runs", "publications", "certificates", f"batch_{metric}")
    ]
