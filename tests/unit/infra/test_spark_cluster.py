"""A Spark cluster as local services: what its processes are told."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.settings import Settings
from infra.spark_cluster import address, cluster_services, registered, work_dir


@pytest.fixture
def java(tmp_path: Path) -> Path:
    home = tmp_path / "java"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").touch()
    (home / "release").write_text('JAVA_VERSION="17.0.1"\nMODULES="java.base jdk.incubator.vector"\n')
    return home


def options(argv: tuple[str, ...]) -> Mapping[str, str]:
    """The values of a command's options."""
    return {
        name: value for name, value in zip(argv, argv[1:], strict=False) if name.startswith("--") and "=" not in name
    }


def test_workers_wait_for_the_master_and_all_listen_where_the_settings_say(tmp_path: Path, java: Path) -> None:
    ports = {"spark_master_port": 4001, "spark_master_ui_port": 4002}
    settings = Settings(data_dir=tmp_path, java_home=java, spark_heap="3g", **ports)

    master, *workers = cluster_services(settings, workers=3, cores=2)

    assert master.ports == ports
    assert master.address == "http://127.0.0.1:4002"
    told = options(master.argv)
    assert (told["--host"], told["--port"], told["--webui-port"]) == ("127.0.0.1", "4001", "4002")
    assert [worker.needs for worker in workers] == [(master.name,)] * 3
    assert len({worker.name for worker in workers}) == 3
    for number, worker in enumerate(workers, 1):
        told = options(worker.argv)
        assert (told["--host"], told["--cores"], told["--memory"]) == ("127.0.0.1", "2", "3g")
        assert told["--work-dir"] == str(work_dir(settings, number))
        assert worker.argv[-1] == address(settings) == "spark://127.0.0.1:4001"


def test_executors_compute_with_the_code_that_started_the_cluster(tmp_path: Path, java: Path) -> None:
    for service in cluster_services(Settings(data_dir=tmp_path, java_home=java)):
        assert (Path(service.env["PYTHONPATH"]) / "infra" / "spark_cluster.py").exists()


def test_where_no_master_answers_there_are_no_workers() -> None:
    assert registered(Settings(spark_master_ui_port=1)) == 0
