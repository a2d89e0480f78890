"""The services above the engines: speed layer, Dagster and API for one catalog; and how all of them are started."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.catalog_file import load_catalog
from infra.clickhouse import connect
from infra.kafka import ensure_topics
from infra.service import Service, http_ready, tcp_ready
from infra.services import clickhouse_services, flink_services, kafka_services
from infra.settings import Settings
from infra.stack import ServiceStatus, status
from infra.stack import up as start_services
from metrics.catalog import Catalog
from orchestration import dagster_home
from orchestration.produce import ensure_event_topic
from serving import schema

Report = Callable[[str], None]
ENGINES = ("kafka", "clickhouse", "flink-jobserver", "flink-expansion", "beam-workers")


def stores(settings: Settings) -> list[Service]:
    """Kafka and ClickHouse: what has to be there before anything can be written."""
    return [*kafka_services(settings), *clickhouse_services(settings)]


def engines(settings: Settings) -> list[Service]:
    """Kafka, ClickHouse and Flink."""
    return [*stores(settings), *flink_services(settings)]


def layers(settings: Settings, catalog_path: Path) -> list[Service]:
    """Speed layer, API and Dagster, for one catalog.

    Raises:
        CatalogError: The catalog breaks a rule; nothing was started.
    """
    catalog = load_catalog(catalog_path)
    module = (sys.executable, "-m")
    speed = Service(
        name="speed",
        argv=(*module, "speed_layer", "--catalog", str(catalog_path)),
        address=catalog.topic,
        ready=lambda: True,  # it has no port: what it publishes shows that it works
        needs=ENGINES,
        env={"LOCKSTEP_CATALOG": str(catalog_path), "LOCKSTEP_CATALOG_VERSION": catalog.version},
        stop_timeout_s=30.0,
    )
    api = Service(
        name="api",
        argv=(*module, "serving", "--catalog", str(catalog_path)),
        address=f"http://{settings.host}:{settings.api_port}",
        ready=http_ready(f"http://{settings.host}:{settings.api_port}/healthz"),
        needs=("clickhouse",),
        env={"LOCKSTEP_CATALOG_VERSION": catalog.version},
        ports={"api_port": settings.api_port},
    )
    return [speed, api, *dagster(settings, catalog_path, catalog)]


def dagster(settings: Settings, catalog_path: Path, catalog: Catalog) -> list[Service]:
    """Dagster's code server, which also runs the runs; its UI; and the daemon with the schedule and the run queue."""
    home = dagster_home.path(settings)
    env = {
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "LOCKSTEP_CATALOG": str(catalog_path),
        "LOCKSTEP_CATALOG_VERSION": catalog.version,  # another version is another code location: it is started again
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
    """The whole stack for one catalog; engines first, then the source's topics and tables, then the layers.

    Raises:
        CatalogError: The catalog breaks a rule; nothing was started.
        StackError: A service could not be started.
    """
    above = layers(settings, catalog_path)
    start_services(settings, stores(settings), report=report)
    prepare_source(settings, load_catalog(catalog_path))
    return start(settings, [*stores(settings), *flink_services(settings), *above], report)
