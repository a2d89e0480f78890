"""A Flink cluster as local services: what is pinned, and what its processes are told."""

import re
from pathlib import Path

import pytest
import yaml

from infra.flink_cluster import BUILD_LOCK_FILE, LOCK_FILE, address, cluster_services, registered
from infra.jars import WANTED_FILE
from infra.settings import Settings


@pytest.fixture
def java(tmp_path: Path) -> Path:
    home = tmp_path / "java"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").touch()
    (home / "release").write_text('JAVA_VERSION="17.0.1"\n')
    return home


def test_the_cluster_is_of_the_version_that_the_runner_was_made_for() -> None:
    runner = re.search(r"beam-runners-flink-(\d+\.\d+):", WANTED_FILE.read_text())
    cluster = re.match(r"apache-flink-libraries==(\d+\.\d+)\.", LOCK_FILE.read_text())
    assert runner and cluster
    assert runner[1] == cluster[1]


@pytest.mark.parametrize("file", [LOCK_FILE, BUILD_LOCK_FILE])
def test_what_is_installed_is_pinned_by_hash_and_names_no_address(file: Path) -> None:
    text = file.read_text()
    assert re.match(r"[a-z-]+==[\d.]+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+\Z", text)


def test_task_managers_wait_for_the_job_manager_and_listen_where_the_settings_say(tmp_path: Path, java: Path) -> None:
    settings = Settings(data_dir=tmp_path, java_home=java, flink_ui_port=4001, flink_rpc_port=4002, flink_heap="1g")

    manager, *workers = cluster_services(settings, tmp_path / "flink", task_managers=3, slots=2)
    manager.prepare()

    assert [worker.needs for worker in workers] == [(manager.name,)] * 3
    assert len({worker.name for worker in workers}) == 3
    assert manager.address == f"http://{address(settings)}" == "http://127.0.0.1:4001"
    told = yaml.safe_load((tmp_path / "flink-cluster" / "conf" / "config.yaml").read_text())
    assert (told["rest.port"], told["jobmanager.rpc.port"], told["taskmanager.numberOfTaskSlots"]) == (4001, 4002, 2)
    assert {told[name] for name in told if name.endswith(("host", "address"))} == {"127.0.0.1"}
    heap = [told[f"taskmanager.memory.{part}.heap.size"] for part in ("framework", "task")]
    assert sum(int(size.removesuffix("m")) for size in heap) == 1024


def test_where_no_job_manager_answers_there_are_no_task_managers() -> None:
    assert registered(Settings(flink_ui_port=1)) == 0
