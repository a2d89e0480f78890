"""A standalone Spark cluster as local processes, without Docker: a master and workers.

    services = cluster_services(settings, workers=2, cores=1)
    up(settings, services)                        # answers at `address(settings)`

The batch layer runs there once `LOCKSTEP_SPARK_MASTER` is `address(settings)`. By hand: `python -m infra.spark_cluster`
starts a cluster, which `python -m infra down` stops. Spark is the one that PySpark brings.
"""

import argparse
import json
import os
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infra.java import Java, JavaError, find_java, require_spark_module
from infra.service import Service, http_ready
from infra.services import java_command
from infra.settings import Settings, SettingsError, load_settings
from infra.stack import StackError, up

SPARK_OPENS = (
    "--add-modules=jdk.incubator.vector",
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util"),
            *("java.util.concurrent", "java.util.concurrent.atomic", "jdk.internal.ref", "sun.nio.ch", "sun.nio.cs"),
            *("sun.security.action", "sun.util.calendar"),
        )
    ),
    "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "-Djdk.reflect.useDirectMethodHandle=false",
    "-Dio.netty.tryReflectionSetAccessible=true",
)
"""What Spark's scripts tell a JVM; drivers and executors are told by Spark itself.

Source: org.apache.spark.launcher.JavaModuleOptions, Spark 4.0.
"""

_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
_HEAP = "512m"  # of a master and of a worker; what computes is the workers' executors
_TIMEOUT_S = 1.0


def cluster_services(settings: Settings, workers: int = 2, cores: int = 1) -> list[Service]:
    """A master at `spark_master_port`, and workers at ports that the kernel chooses.

    Args:
        settings: ports, and where the workers' directories go; each worker has `spark_heap` for its executors.
        workers: number of processes that start executors; one that dies is started again.
        cores: tasks that each of them runs at once.

    Raises:
        JavaError: there is no Java 17, or one that lacks what Spark needs.
    """
    java = find_java(settings, os.environ)
    require_spark_module(java)
    environment = _environment(settings, java)
    master = Service(
        name="spark-master",
        argv=java_command(
            java,
            _HEAP,
            _MASTER,
            *("--host", settings.host, "--port", str(settings.spark_master_port)),
            *("--webui-port", str(settings.spark_master_ui_port)),
            options=SPARK_OPENS,
        ),
        env=environment,
        address=_page(settings),
        ready=http_ready(f"{_page(settings)}/json/"),
        ports={name: getattr(settings, name) for name in ("spark_master_port", "spark_master_ui_port")},
    )
    members = [
        Service(
            name=f"spark-worker-{number}",
            argv=java_command(
                java,
                _HEAP,
                _WORKER,
                *("--host", settings.host, "--port", "0", "--webui-port", "0"),
                *("--cores", str(cores), "--memory", settings.spark_heap),
                *("--work-dir", str(work_dir(settings, number))),
                address(settings),
                options=(
                    *SPARK_OPENS,
                    f"-Dspark.local.dir={_home(settings) / 'tmp'}",
                    # Else the directories of all runs would stay, with the jars that each brought along.
                    "-Dspark.worker.cleanup.enabled=true",
                ),
            ),
            env=environment,
            address=settings.host,
            ready=lambda: workers <= registered(settings),
            needs=(master.name,),
        )
        for number in range(1, workers + 1)
    ]
    return [master, *members]


def address(settings: Settings) -> str:
    """The local cluster's URL, as `spark_master` names it."""
    return f"spark://{settings.host}:{settings.spark_master_port}"


def work_dir(settings: Settings, number: int) -> Path:
    """Where a worker, counted from 1, keeps a directory per run: `app-.../EXECUTOR/stderr` is an executor's log."""
    return _home(settings) / f"worker-{number}"


def registered(settings: Settings) -> int:
    """The number of workers that the local cluster's master knows to be alive; 0 where none answers."""
    try:
        with urllib.request.urlopen(f"{_page(settings)}/json/", timeout=_TIMEOUT_S) as answer:
            known: Mapping[str, Any] = json.load(answer)
            return int(known["aliveworkers"])
    except (OSError, ValueError):
        return 0


def _home(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "spark-cluster"


def _page(settings: Settings) -> str:
    return f"http://{settings.host}:{settings.spark_master_ui_port}"


def _environment(settings: Settings, java: Java) -> dict[str, str]:
    """What master, workers and, by them, executors and their Python processes find in their environment."""
    spec = find_spec("pyspark")
    assert spec and spec.origin
    home = Path(spec.origin).parent
    return {
        "CLASSPATH": str(home / "jars" / "*"),
        "JAVA_HOME": str(java.home),
        "SPARK_HOME": str(home),
        # The web pages listen there too.
        "SPARK_LOCAL_IP": settings.host,
        # A worker without it looks for a source tree of Spark, and starts no executor.
        "SPARK_SCALA_VERSION": "2.13",
        # Executors run in directories of their own, and would compute with whatever is installed.
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a cluster: `python -m infra.spark_cluster`."""
    parser = argparse.ArgumentParser(prog="python -m infra.spark_cluster", description="a standalone Spark cluster")
    parser.add_argument("--workers", type=int, default=2, help="processes that start executors (2)")
    parser.add_argument("--cores", type=int, default=1, help="tasks that each of them runs at once (1)")
    given = parser.parse_args(arguments)
    try:
        settings = load_settings()
        services = cluster_services(settings, given.workers, given.cores)
        up(settings, services, report=lambda line: print(line, file=sys.stderr))
        print(f"LOCKSTEP_SPARK_MASTER={address(settings)}")
    except (JavaError, SettingsError, StackError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
