"""A standalone Flink cluster as local processes, without Docker: a job manager and task managers.

    services = cluster_services(settings, task_managers=2, slots=2)
    up(settings, services)                        # answers at `address(settings)`

The speed layer runs there once `LOCKSTEP_FLINK_MASTER` is `address(settings)`. By hand: `python -m infra.flink_cluster`
installs Flink, with `up` it also starts a cluster, which `python -m infra down` stops. Flink comes from PyPI.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import yaml

from infra.java import JavaError, find_java
from infra.service import Service, http_ready
from infra.services import FLINK_OPENS, java_command
from infra.settings import Settings, SettingsError, load_settings
from infra.stack import StackError, up

_HERE = Path(__file__).parent
LOCK_FILE = _HERE / "flink.lock"
BUILD_LOCK_FILE = _HERE / "flink-build.lock"
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_TIMEOUT_S = 5.0


class FlinkError(RuntimeError):
    """Flink's distribution could not be installed; the text ends with what the installer said."""


def distribution(settings: Settings) -> Path:
    """Flink's home, with `bin`, `lib`, `opt` and `plugins` in it; installed under `data_dir` where it is missing.

    Raises:
        FlinkError: it is not there, and cannot be had.
    """
    locks = LOCK_FILE.read_bytes() + BUILD_LOCK_FILE.read_bytes()
    home = settings.data_dir.absolute() / "flink-dist" / sha256(locks).hexdigest()[:12]
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            _install(Path(scratch) / "home")
            # At once, so that nobody finds half of it; whoever was quicker has put the same there.
            if not home.exists():
                (Path(scratch) / "home").replace(home)
    return home / "pyflink"


def cluster_services(settings: Settings, home: Path, task_managers: int = 2, slots: int = 2) -> list[Service]:
    """A job manager with its REST interface at `flink_ui_port`, and task managers of so many slots each.

    Args:
        settings: ports, and where configuration and scratch files go.
        home: Flink's home, see `distribution`.
        task_managers: number of processes that run tasks; one that dies is started again.
        slots: tasks of a job's parallelism that each of them runs.
    """
    conf = settings.data_dir.absolute() / "flink-cluster" / "conf"
    prepare = partial(_configure, settings, conf, slots)
    url = f"http://{address(settings)}"
    environment = {"CLASSPATH": str(home / "lib" / "*"), "FLINK_PLUGINS_DIR": str(home / "plugins")}
    java = find_java(settings, os.environ)
    # log4j without a configuration of its own writes to stdout, which is the service's log
    options = (*FLINK_OPENS, "-Dlog4j2.level=warn", "-XX:MaxDirectMemorySize=1g", "-XX:MaxMetaspaceSize=512m")
    arguments = ("--configDir", str(conf))
    job_manager = Service(
        name="flink-jobmanager",
        argv=java_command(java, settings.flink_heap, _JOB_MANAGER, *arguments, options=options),
        env=environment,
        address=url,
        ready=http_ready(f"{url}/overview"),
        ports={"flink_ui_port": settings.flink_ui_port, "flink_rpc_port": settings.flink_rpc_port},
        prepare=prepare,
    )
    workers = [
        Service(
            name=f"flink-taskmanager-{number}",
            argv=java_command(java, settings.flink_heap, _TASK_MANAGER, *arguments, options=options),
            env=environment,
            address=settings.host,
            ready=lambda: task_managers <= registered(settings),
            needs=("flink-jobmanager",),
        )
        for number in range(1, task_managers + 1)
    ]
    return [job_manager, *workers]


def address(settings: Settings) -> str:
    """`host:port` of the local cluster's REST interface, as `flink_master` names it."""
    return f"{settings.host}:{settings.flink_ui_port}"


def registered(settings: Settings) -> int:
    """The number of task managers that the local cluster's job manager knows; 0 where none answers."""
    try:
        with urllib.request.urlopen(f"http://{address(settings)}/taskmanagers", timeout=_TIMEOUT_S) as answer:
            return len(json.load(answer)["taskmanagers"])
    except (OSError, ValueError):
        return 0


def _install(target: Path) -> None:
    """Unpack Flink from PyPI's source distribution; what builds it is pinned as well."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--target", str(target)]
    # The cache would keep a second and a third copy of 250 MB.
    command += ["--no-cache", "--no-deps", "--require-hashes", "-r", str(LOCK_FILE), "-b", str(BUILD_LOCK_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"Flink could not be installed from `{LOCK_FILE.name}`: {done.stderr.strip()}"
        raise FlinkError(msg)


def _configure(settings: Settings, conf: Path, slots: int) -> None:
    """Write the configuration that all processes of the cluster read."""
    scratch = conf.parent / "tmp"
    for directory in (conf, scratch):
        directory.mkdir(parents=True, exist_ok=True)
    heap_mb = _megabytes(settings.flink_heap)
    options = {
        "jobmanager.rpc.address": settings.host,
        "jobmanager.rpc.port": settings.flink_rpc_port,
        "jobmanager.bind-host": settings.host,
        "rest.address": settings.host,
        "rest.bind-address": settings.host,
        "rest.port": settings.flink_ui_port,
        "taskmanager.host": settings.host,
        "taskmanager.bind-host": settings.host,
        "taskmanager.numberOfTaskSlots": slots,
        # A task manager refuses to start without its memory in all parts, which Flink's scripts compute otherwise.
        "taskmanager.cpu.cores": slots,
        "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.task.heap.size": f"{heap_mb - 128}m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.task.off-heap.size": "128m",
        "taskmanager.memory.network.min": "128m",
        "taskmanager.memory.network.max": "128m",
        "taskmanager.memory.managed.size": "256m",
        "taskmanager.memory.jvm-metaspace.size": "512m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        # A killed task manager is missed after two calls that nobody answers.
        "heartbeat.interval": 2000,
        # A checkpoint of RocksDB holds what changed since the last.
        "state.backend.incremental": True,
        "io.tmp.dirs": str(scratch),
    }
    (conf / "config.yaml").write_text(yaml.safe_dump(options))


def _megabytes(heap: str) -> int:
    """A JVM size (`512m`, `1g`) in MiB."""
    return int(heap[:-1]) * (1024 if heap.endswith("g") else 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Install Flink, and with `up` start a cluster: `python -m infra.flink_cluster [up]`."""
    parser = argparse.ArgumentParser(prog="python -m infra.flink_cluster", description="a standalone Flink cluster")
    parser.add_argument("action", nargs="?", choices=["install", "up"], default="install")
    parser.add_argument("--task-managers", type=int, default=2, help="processes that run tasks (2)")
    parser.add_argument("--slots", type=int, default=2, help="slots of each of them (2)")
    given = parser.parse_args(arguments)
    try:
        settings = load_settings()
        home = distribution(settings)
        if given.action == "up":
            services = cluster_services(settings, home, given.task_managers, given.slots)
            up(settings, services, report=lambda line: print(line, file=sys.stderr))
            print(f"LOCKSTEP_FLINK_MASTER={address(settings)}")
        else:
            print(home)
    except (FlinkError, JavaError, SettingsError, StackError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
