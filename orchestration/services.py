"""The services above the engines: a speed layer per source, Dagster and API for all; and how all are started."""

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from infra.clickhouse import connect
from infra.kafka import ensure_topics
from infra.service import Service, http_ready, tcp_ready
from infra.services import clickhouse_services, flink_services, kafka_services, registry_services
from infra.settings import Settings, setting_name
from infra.stack import ServiceStatus, status, stop
from infra.stack import up as start_services
from metrics.catalog import Catalog
from orchestration import dagster_home
from orchestration.produce import ensure_event_topic
from orchestration.sources import SourceFile, load_sources
from serving import schema

Report = Callable[[str], None]
ENGINES = ("kafka", "clickhouse", "flink-jobserver", "flink-expansion", "beam-workers")
SPEED, LIVE, BESIDE = "speed-", "live-", "beside-"
"""How the names begin of the services that belong to one source, its name follows."""


def stores(settings: Settings) -> list[Service]:
    """Kafka and ClickHouse: what has to be there before anything can be written."""
    return [*kafka_services(settings), *clickhouse_services(settings)]


def engines(settings: Settings) -> list[Service]:
    """Kafka, ClickHouse and Flink."""
    return [*stores(settings), *flink_services(settings)]


def layers(settings: Settings, catalog_path: Path) -> list[Service]:
    """A speed layer per source, API and Dagster for all sources of a catalog file or directory.

    Raises:
        CatalogError: A catalog breaks a rule; nothing was started.
    """
    sources = load_sources(catalog_path)
    api = Service(
        name="api",
        argv=(sys.executable, "-m", "serving", "--catalog", str(catalog_path)),
        address=f"http://{settings.host}:{settings.api_port}",
        ready=http_ready(f"http://{settings.host}:{settings.api_port}/healthz"),
        needs=("clickhouse",),
        env={"LOCKSTEP_CATALOG_VERSION": _version(sources)},
        ports={"api_port": settings.api_port},
    )
    return [*(speed(settings, source) for source in sources), api, *dagster(settings, catalog_path)]


def speed(settings: Settings, source: SourceFile) -> Service:
    """The speed layer of a source. Its name is the same however many sources there are.

    It has no more subtasks than its topic has partitions: each costs two worker processes.
    """
    catalog = source.catalog
    return Service(
        name=f"{SPEED}{source.name}",
        argv=(sys.executable, "-m", "speed_layer", "--catalog", str(source.path)),
        address=catalog.topic,
        ready=lambda: True,  # it has no port: what it publishes shows that it works
        needs=ENGINES,
        env={
            "LOCKSTEP_CATALOG": str(source.path),
            "LOCKSTEP_CATALOG_VERSION": catalog.version,
            setting_name("parallelism"): str(min(settings.parallelism, catalog.topic_partitions)),
        },
        stop_timeout_s=30.0,
    )


def start_beside(settings: Settings, source: SourceFile, metrics: Sequence[str], report: Report) -> None:
    """Start a speed layer for some metrics of a source beside the one that runs, until the stack is next started.

    Raises:
        StackError: It could not be started.
    """
    whole = speed(settings, source)
    only = replace(whole, name=f"{BESIDE}{source.name}", argv=(*whole.argv, "--only", *metrics))
    start_services(settings, [*engines(settings), only], report=report)


def dagster(settings: Settings, catalog_path: Path) -> list[Service]:
    """Dagster's code server, which also runs the runs; its UI; and the daemon with the schedules and the run queue."""
    home = dagster_home.path(settings)
    env = {
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "LOCKSTEP_CATALOG": str(catalog_path),
        # Other definitions are another code location: it is started again.
        "LOCKSTEP_CATALOG_VERSION": _version(load_sources(catalog_path)),
    }
    host, code, port = settings.host, str(settings.dagster_code_port), str(settings.dagster_port)
    workspace = str(home / dagster_home.WORKSPACE)
    module = (sys.executable, "-m")

    def prepare() -> None:
        dagster_home.write(settings)

    return [
        Service(
            name="dagster-code",
            # fmt: off
            argv=(
                *module,
                "dagster",
                "api",
                "grpc",
                "--module-name",
                "orchestration.definitions",
                "--host",
                host,
                "--port",
                code,
                "--location-name",
                dagster_home.LOCATION,
                "--log-level",
                "warning",
                "--max-workers",
                "4",
            ),
            # fmt: on
            address=f"{host}:{code}",
            ready=tcp_ready(host, settings.dagster_code_port),
            env=env,
            ports={"dagster_code_port": settings.dagster_code_port},
            prepare=prepare,
        ),
        Service(
            name="dagster-webserver",
            argv=(*module, "dagster_webserver", "--host", host, "--port", port, "--workspace", workspace),
            address=f"http://{host}:{port}",
            ready=http_ready(f"http://{host}:{port}/server_info"),
            env=env,
            ports={"dagster_port": settings.dagster_port},
            needs=("dagster-code",),
            prepare=prepare,
        ),
        Service(
            name="dagster-daemon",
            argv=(*module, "dagster._daemon", "run", "--workspace", workspace, "--log-level", "warning"),
            address=dagster_home.LOCATION,
            ready=lambda: True,  # it has no port; a run that is not taken from the queue shows that it is missing
            env=env,
            needs=("dagster-code",),
            prepare=prepare,
        ),
    ]


def start(settings: Settings, services: Sequence[Service], report: Report) -> list[ServiceStatus]:
    """Start services and wait until they are ready."""
    start_services(settings, services, report=report)
    return status(settings)


def prepare_source(settings: Settings, catalog: Catalog) -> None:
    """Create what is missing of a source: its topic, its dead-letter and late topics, its tables and views."""
    ensure_event_topic(settings, catalog.topic, catalog.topic_partitions, oldest=round(time.time() * 1000))
    ensure_topics(settings, {catalog.dlq_topic: 1, catalog.late_topic: 1})
    schema.apply(connect(settings), catalog, settings.database(catalog.source))


def start_all(settings: Settings, catalog_path: Path, report: Report) -> list[ServiceStatus]:
    """The whole stack for some sources; engines first, then the sources' topics and tables, then the layers.

    Raises:
        CatalogError: A catalog breaks a rule; nothing was started.
        StackError: A service could not be started.
    """
    sources = load_sources(catalog_path)
    above = layers(settings, catalog_path)
    below = stores_of(settings, sources)
    start_services(settings, below, report=report)
    for source in sources:
        prepare_source(settings, source.catalog)
    stop_others(settings, sources, report)
    return start(settings, [*below, *flink_services(settings), *above], report)


def stores_of(settings: Settings, sources: Sequence[SourceFile]) -> list[Service]:
    """Kafka, ClickHouse and, where a source needs one, the schema registry."""
    registries = [registry_services(settings, source.catalog) for source in sources]
    return [*stores(settings), *next(filter(None, registries), [])]


def stop_others(settings: Settings, sources: Sequence[SourceFile], report: Report) -> None:
    """Stop what runs for sources other than these, which API and Dagster would no longer show, and what ran beside."""
    kept = {prefix + source.name for prefix in (SPEED, LIVE) for source in sources}
    running = [each.name for each in status(settings) if each.name.startswith((SPEED, LIVE, BESIDE))]
    stop(settings, [name for name in running if name not in kept], report=report)


def _version(sources: Sequence[SourceFile]) -> str:
    """Changes with anything that a catalog says, descriptions included."""
    return hashlib.sha256(b"\0".join(source.path.read_bytes() for source in sources)).hexdigest()[:16]
