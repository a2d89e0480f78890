"""`lockstep demo` as a new user runs it, twice, on a stack of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lockstep_shell import Lockstep

from infra.clickhouse import connect, quote
from infra.settings import Settings
from infra.stack import down
from orchestration.definitions import DEMO_CATALOG

SERVICES = {
    "kafka", "clickhouse", "flink-jobserver", "flink-expansion", "beam-workers",
    "speed", "api", "dagster-code", "dagster-webserver", "dagster-daemon", "shop",
}  # fmt: skip


@pytest.fixture
def fresh(new_settings: Callable[..., Settings], tmp_path: Path) -> Iterator[Settings]:
    settings = new_settings(tmp_path / "data")
    try:
        yield settings
    finally:
        down(settings)


def test_the_demo_ends_certified_and_a_second_one_changes_nothing_that_was_right(fresh: Settings) -> None:
    run = Lockstep(fresh, DEMO_CATALOG)

    first = run("demo", "--events", "20000")
    services = run.json("status")["services"]
    assert {each["name"] for each in services} == SERVICES
    assert {each["state"] for each in services} == {"running"}
    for shown in ("unique_visitors", "batch", "speed", "drift", f":{fresh.api_port}", f":{fresh.dagster_port}"):
        assert shown in first
    assert "✓" in first.partition("ground truth")[2]
    assert "x" not in {word for line in first.splitlines() if "ground truth" in line for word in line.split()}
    (report,) = [line.split()[1] for line in first.splitlines() if line.startswith("report ")]
    assert Path(report).exists()

    before = _right(fresh)
    second = run("demo", "--events", "20000")
    assert "3 days are certified already" in second
    assert "so none are made" in second
    assert _right(fresh) == before

    run("down")
    assert run.json("status") == {"services": []}


def _right(settings: Settings) -> list[object]:
    """Everything that a second demo must leave alone: runs, publications, certificates, exact values."""
    client, database = connect(settings), quote(settings.database("shop"))
    return [
        client.query(f"SELECT * FROM {database}.{table} ORDER BY ALL").result_rows
        for table in ("batch_runs", "publications", "certificates", "batch_events")
    ]
