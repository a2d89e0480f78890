"""The speed layer on a Flink cluster of several processes: the same command, other settings, exact counts."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from beam_workers import workers

from infra import kafka
from infra.clickhouse import connect
from infra.flink_cluster import address, cluster_services, distribution
from infra.services import core_services
from infra.settings import Settings, load_settings
from infra.stack import ServiceStatus, down, status, up
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from speed_layer.pipeline import WORKERS_PER_SUBTASK
from speed_layer.published import frontier

PARALLELISM = 4
TASK_MANAGERS = 2
SLOTS = 2  # so that the job needs both task managers, before one is killed and after
EVENTS = 400_000
FIRST = 40_000
HALF = EVENTS // 2
BATCH = 10_000
COUNTRIES = ("de", "fr", "it", "es")
START_MS = 1_780_000_000_000
WAIT_S = 200.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, new_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """A stack whose job server submits to a cluster of two task managers."""
    local = new_settings(tmp_path_factory.mktemp("cluster"), parallelism=PARALLELISM)
    settings = local.model_copy(update={"flink_master": address(local)})
    home = distribution(load_settings())
    services = [*core_services(settings), *cluster_services(settings, home, TASK_MANAGERS, SLOTS)]
    try:
        up(settings, services, owner_pid=os.getpid())
        yield settings
    finally:
        down(settings)


def test_a_killed_task_manager_changes_no_count(cluster: Settings, unique: str, tmp_path: Path) -> None:
    catalog = _catalog(unique)
    kafka.ensure_topics(cluster, {catalog.topic: PARALLELISM})
    _write(cluster, catalog, 0, FIRST)
    with _speed_layer(cluster, tmp_path, unique):
        _await(lambda: _published(cluster, catalog) > 0)
        writer = threading.Thread(target=lambda: _write(cluster, catalog, FIRST, HALF))
        writer.start()
        _await(lambda: _checkpoints(cluster)["counts"]["completed"] > 0 and _published(cluster, catalog) > FIRST)
        members = _task_managers(cluster)
        assert len(members) == TASK_MANAGERS
        assert _at_work(cluster) == members
        assert len(workers(cluster)) == WORKERS_PER_SUBTASK * PARALLELISM
        victim = _victim(cluster)
        at_kill = _published(cluster, catalog)
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        assert 0 < at_kill < EVENTS
        writer.join()
        _write(cluster, catalog, HALF, EVENTS)
        _await(lambda: _published(cluster, catalog) == EVENTS)

        follower = _victim(cluster)
        assert (follower.restarts, follower.pid == victim.pid) == (1, False)
        successors = _task_managers(cluster)
        assert (len(successors), len(successors - members)) == (TASK_MANAGERS, 1)
        assert _at_work(cluster) == successors
        assert _checkpoints(cluster)["counts"]["restored"] > 0

    client = connect(cluster, cluster.database(unique))
    ledger = client.query("SELECT sum(records), sum(counted) FROM ledger FINAL").result_rows
    assert [tuple(row) for row in ledger] == [(EVENTS, EVENTS)]
    assert client.query("SELECT sum(events) FROM speed_everything FINAL").result_rows[0][0] == EVENTS
    by_country = client.query("SELECT country, sum(events) FROM speed_by_country FINAL GROUP BY country").result_rows
    assert dict(by_country) == dict.fromkeys(COUNTRIES, EVENTS // len(COUNTRIES))


def _tree(name: str) -> dict[str, Any]:
    return {
        "source": name,
        "topic": f"{name}.events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "key": "id",
        "topic_partitions": PARALLELISM,
        "fields": {"country": "string"},
        "metrics": {
            "everything": {"agg": "count", "window": "tumbling 10s"},
            "by_country": {"agg": "count", "by": ["country"], "window": "tumbling 10s"},
        },
    }


def _catalog(name: str) -> Catalog:
    return parse_catalog(_tree(name), {}, "test")


def _write(settings: Settings, catalog: Catalog, begin: int, end: int) -> None:
    """Appends the events of these numbers, in batches with pauses, so that they are not all read at once."""
    producer = kafka.producer(settings)
    for first in range(begin, end, BATCH):
        kafka.produce_all(producer, catalog.topic, (_record(n) for n in range(first, min(first + BATCH, end))))
        time.sleep(0.2)


def _record(number: int) -> dict[str, Any]:
    moment = START_MS + number
    body = {"id": f"e{number}", "ts": moment, "country": COUNTRIES[number % len(COUNTRIES)]}
    return {"partition": number // 7 % PARALLELISM, "timestamp": moment, "value": json.dumps(body).encode()}


@contextmanager
def _speed_layer(settings: Settings, directory: Path, name: str) -> Iterator[None]:
    """The command as it runs anywhere: where it computes is in the environment alone."""
    path = directory / "catalog.yaml"
    path.write_text(yaml.safe_dump(_tree(name)))
    command = [sys.executable, "-m", "speed_layer", "--catalog", str(path)]
    process = subprocess.Popen(command, env={**os.environ, **settings.environ()})
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def _published(settings: Settings, catalog: Catalog) -> int:
    """The offsets whose events are in the tables."""
    try:
        return sum(frontier(connect(settings, settings.database(catalog.source)), catalog).values())
    except Exception:  # noqa: BLE001 - the tables are not there yet
        return 0


def _victim(settings: Settings) -> ServiceStatus:
    [found] = [each for each in status(settings) if each.name == "flink-taskmanager-1"]
    return found


def _task_managers(settings: Settings) -> set[str]:
    return {member["id"] for member in _rest(settings, "/taskmanagers")["taskmanagers"]}


def _at_work(settings: Settings) -> set[str]:
    """The task managers that run a part of the job."""
    job = _rest(settings, f"/jobs/{_job(settings)}")
    found = set()
    for vertex in job["vertices"]:
        parts = _rest(settings, f"/jobs/{job['jid']}/vertices/{vertex['id']}/taskmanagers")["taskmanagers"]
        found |= {part["taskmanager-id"] for part in parts if part["status"] == "RUNNING"}
    return found


def _checkpoints(settings: Settings) -> Any:
    return _rest(settings, f"/jobs/{_job(settings)}/checkpoints")


def _job(settings: Settings) -> str:
    [job] = _rest(settings, "/jobs/overview")["jobs"]
    return str(job["jid"])


def _rest(settings: Settings, path: str) -> Any:
    with urllib.request.urlopen(f"http://{settings.flink_master}{path}", timeout=10) as answer:
        return json.load(answer)


def _await(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline, "was not reached in time"
        time.sleep(0.1)
