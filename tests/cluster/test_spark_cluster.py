"""The batch layer on a Spark cluster of several processes: the same command, another setting, the same bytes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from batch_log import DAYS, catalog_tree, produce, records
from clickhouse_connect.driver.client import Client

from infra.catalog_file import load_catalog
from infra.clickhouse import connect, query_frame
from infra.services import clickhouse_services, kafka_services
from infra.settings import Settings
from infra.spark_cluster import address, cluster_services, work_dir
from infra.stack import down, status, up
from metrics.catalog import Catalog

WORKERS = 2
RECORDS = 6_000
METRICS = ("revenue", "visitors", "prices", "amount_p95", "latest", "visits")
ALERTS = {"spree": {"when": "count > 2", "where": "kind = 'purchase'", "by": "user", "within": "2h"}}
WAIT_S = 200.0
OWN = {"run_id", "wall_seconds", "cpu_seconds"}
"""What of a manifest is a run's own."""


@dataclass(frozen=True)
class Source:
    """A log over three days, and the batch layer over it as a command."""

    settings: Settings
    catalog: Catalog
    path: Path

    @property
    def client(self) -> Client:
        return connect(self.settings, self.settings.database(self.catalog.source))

    @contextmanager
    def started(self, spark_master: str) -> Iterator[subprocess.Popen[str]]:
        """The command as it runs anywhere: where it computes is in the environment alone."""
        command = [sys.executable, "-m", "batch_layer", "--catalog", str(self.path), "--json"]
        command += ["--from", str(DAYS[0]), "--to", str(DAYS[-1])]
        where = os.environ | self.settings.model_copy(update={"spark_master": spark_master}).environ()
        process = subprocess.Popen(command, env=where, stdout=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(WAIT_S)

    def run(self, spark_master: str) -> str:
        """The id of a run that has published all days."""
        with self.started(spark_master) as process:
            return run_id_of(process)

    def last_run(self) -> str:
        """The id of the run that began last."""
        return str(query_frame(self.client, "SELECT max(run_id) AS last FROM batch_runs")["last"].item())

    def has(self, table: str, after: str) -> bool:
        """Whether a table has rows of a run that began after another."""
        sql = f"SELECT count() AS n FROM {table} WHERE run_id > {{run:String}}"
        return bool(query_frame(self.client, sql, {"run": after})["n"].item())

    def contents(self, run_id: str) -> dict[str, list[str]]:
        """All that a run wrote, by table."""
        tables = query_frame(
            self.client,
            "SELECT DISTINCT table FROM system.columns WHERE database = currentDatabase() AND name = 'run_id' "
            "AND match(table, '^(batch|expected)_') AND NOT match(table, '__') AND table != 'batch_runs'",
        )["table"]
        sql = "SELECT * EXCEPT run_id FROM {} WHERE run_id = {{run:String}}"
        return {
            table: sorted(map(repr, query_frame(self.client, sql.format(table), {"run": run_id}).rows()))
            for table in tables
        }

    def manifests(self, run_id: str) -> list[dict[str, Any]]:
        """What a run says of each day, without what is its own."""
        sql = "SELECT manifest FROM batch_runs WHERE run_id = {run:String} AND status = 'complete' ORDER BY partition"
        told = map(json.loads, query_frame(self.client, sql, {"run": run_id})["manifest"])
        return [{name: value for name, value in one.items() if name not in OWN} for one in told]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, new_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Kafka, ClickHouse and a Spark cluster of two workers."""
    settings = new_settings(tmp_path_factory.mktemp("cluster"), spark_heap="1g")
    services = [*kafka_services(settings), *clickhouse_services(settings), *cluster_services(settings, WORKERS)]
    try:
        up(settings, services, owner_pid=os.getpid())
        yield settings
    finally:
        down(settings)


@pytest.fixture(scope="module")
def source(cluster: Settings, tmp_path_factory: pytest.TempPathFactory) -> Source:
    tree = catalog_tree("spread")
    tree |= {"metrics": {name: tree["metrics"][name] for name in METRICS}, "alerts": ALERTS}
    path = tmp_path_factory.mktemp("catalog") / "catalog.yaml"
    path.write_text(yaml.safe_dump(tree))
    catalog = load_catalog(path)
    produce(cluster, catalog, records(seed=21, count=RECORDS))
    return Source(cluster, catalog, path)


@pytest.fixture(scope="module")
def alone(source: Source) -> str:
    """The id of a run in one process."""
    return source.run("local[2]")


def test_a_run_on_a_cluster_writes_the_bytes_of_a_run_in_one_process(source: Source, alone: str) -> None:
    assert_same(source, alone, source.run(address(source.settings)))

    for number in range(1, WORKERS + 1):
        logs = work_dir(source.settings, number).glob("app-*/*/stderr")
        assert "Finished task" in "".join(log.read_text() for log in logs)


def test_a_worker_that_is_killed_with_all_that_it_held_changes_no_byte(source: Source, alone: str) -> None:
    last = source.last_run()
    with source.started(address(source.settings)) as process:
        while not source.has("expected_revenue", after=last):
            assert process.poll() is None
            time.sleep(0.05)
        members = machine(source.settings)
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        assert not source.has("publications", after=last)
        assert len(members) > 1, "the worker had an executor"
        assert_same(source, alone, run_id_of(process))


def machine(settings: Settings) -> list[psutil.Process]:
    """The processes that would be gone with the first worker's machine."""
    [found] = [each for each in status(settings) if each.name == "spark-worker-1"]
    worker = psutil.Process(found.pid)
    return [worker, *worker.children(recursive=True)]


def run_id_of(process: subprocess.Popen[str]) -> str:
    """The id of the run that a process makes, once it has published all days."""
    answer, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    partitions = json.loads(answer)["partitions"]
    assert [(one["partition"], one["published"]) for one in partitions] == [(str(day), True) for day in DAYS]
    return str(partitions[0]["run_id"])


def assert_same(source: Source, one: str, other: str) -> None:
    assert one != other
    manifests = source.manifests(one)
    assert [manifest["partition"] for manifest in manifests] == [str(day) for day in DAYS]
    assert {"checksum", "dispositions", "events", "indexed", "ranges"} <= manifests[0].keys()
    assert source.manifests(other) == manifests
    contents = source.contents(one)
    by_metric = {f"{layer}_{metric}" for layer in ("batch", "expected") for metric in METRICS}
    assert contents.keys() == {*by_metric, "batch_exceptions", "batch_alerts"}
    assert all(contents.values())
    assert source.contents(other) == contents
