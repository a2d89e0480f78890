"""The services every stack has: Kafka, ClickHouse, Flink with what Beam needs around it."""

import os
import shutil
import sys
import uuid
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from confluent_kafka import KafkaException

from infra import kafka
from infra.jars import classpath, resolve
from infra.java import Java, find_java
from infra.registry import uses_local_registry
from infra.service import Service, accepts, http_ready, tcp_ready
from infra.settings import Settings
from metrics.catalog import Catalog

EMBEDDED = "embedded"
FLINK_OPENS = tuple(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in ("java.lang", "java.util", "java.nio", "java.net", "java.text", "java.time", "java.util.concurrent")
)


_LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSX",
)


def core_services(settings: Settings) -> list[Service]:
    """Everything this package knows to start, leaving out what the settings place elsewhere."""
    return [*kafka_services(settings), *clickhouse_services(settings), *flink_services(settings)]


def kafka_services(settings: Settings) -> list[Service]:
    """A Kafka broker that is its own controller (KRaft); none when `kafka_bootstrap` names another."""
    if settings.kafka_bootstrap:
        return []
    java = _java(settings)
    home = settings.data_dir.absolute() / "kafka"
    return [
        Service(
            name="kafka",
            argv=java_command(
                java, settings.kafka_heap, "kafka.Kafka", str(home / "server.properties"), options=_LOGGING
            ),
            env={"CLASSPATH": classpath(resolve("kafka", settings))},
            address=settings.bootstrap,
            ready=partial(_kafka_answers, settings),
            ports={"kafka_port": settings.kafka_port, "kafka_controller_port": settings.kafka_controller_port},
            prepare=partial(_prepare_kafka, settings, home),
        )
    ]


def registry_services(settings: Settings, catalog: Catalog) -> list[Service]:
    """A schema registry, where the catalog's format asks for one and neither it nor the settings name another."""
    return [schema_registry(settings)] if uses_local_registry(settings, catalog) else []


def schema_registry(settings: Settings) -> Service:
    """The local schema registry. A process of its own: clients reach it as they would any other registry."""
    address = f"http://{settings.host}:{settings.schema_registry_port}"
    return Service(
        name="schema-registry",
        argv=(sys.executable, "-m", "infra.schema_registry"),
        address=address,
        ready=http_ready(f"{address}/"),
        ports={"schema_registry_port": settings.schema_registry_port},
        needs=("kafka",),
    )


def clickhouse_services(settings: Settings) -> list[Service]:
    """A ClickHouse server: the binary on PATH, else the embedded engine; none when `clickhouse_url` names another."""
    if settings.clickhouse_url:
        return []
    binary = settings.clickhouse_binary
    if binary is None:
        binary = shutil.which("clickhouse") or EMBEDDED
    ports = {"clickhouse_port": settings.clickhouse_port}
    if binary == EMBEDDED:
        argv: tuple[str, ...] = (sys.executable, "-m", "infra.clickhouse_front")
        prepare: Callable[[], None] = lambda: None  # noqa: E731 - the embedded engine makes its own directory
    else:
        home = settings.data_dir.absolute() / "clickhouse-server"
        argv = (binary, "server", f"--config-file={home / 'config.xml'}")
        prepare = partial(_prepare_clickhouse, settings, home)
        ports["clickhouse_native_port"] = settings.clickhouse_native_port
    return [
        Service(
            name="clickhouse",
            argv=argv,
            address=settings.clickhouse_address,
            ready=http_ready(f"{settings.clickhouse_address}/ping"),
            ports=ports,
            prepare=prepare,
        )
    ]


def flink_services(settings: Settings) -> list[Service]:
    """Beam's job server with Flink inside, the expansion service for its native source, the Python worker pool.

    The two Java servers listen on every interface: this version of Beam binds their ports without an address and has
    no option for one. Where others can reach the machine, close `job_port`, `artifact_port`, `expansion_port` to them.
    """
    java = _java(settings)
    jars = {"CLASSPATH": classpath(resolve("flink", settings))}
    home = settings.data_dir.absolute() / "flink"
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    scratch = f"-Djava.io.tmpdir={home / 'tmp'}"
    job_server = Service(
        name="flink-jobserver",
        argv=java_command(
            java,
            settings.flink_heap,
            "org.apache.beam.runners.flink.FlinkJobServerDriver",
            f"--flink-master={settings.flink_master}",
            f"--job-host={settings.host}",
            f"--job-port={settings.job_port}",
            f"--artifact-port={settings.artifact_port}",
            f"--expansion-port={settings.job_expansion_port}",
            f"--artifacts-dir={home / 'artifacts'}",
            options=(
                *FLINK_OPENS,
                *_LOGGING,
                scratch,
                "-XX:MaxDirectMemorySize=1g",
                "-XX:MaxMetaspaceSize=384m",
                # The work is in the Python workers; compiling this JVM twice took a seventh of the time of a backlog.
                "-XX:TieredStopAtLevel=1",
            ),
        ),
        env=jars,
        address=settings.job_endpoint,
        ready=tcp_ready(settings.host, settings.job_port),
        ports={
            "job_port": settings.job_port,
            "artifact_port": settings.artifact_port,
            "job_expansion_port": settings.job_expansion_port,
        },
        prepare=partial(_prepare_flink, settings, home),
    )
    expansion = Service(
        name="flink-expansion",
        argv=java_command(
            java,
            settings.expansion_heap,
            "org.apache.beam.sdk.expansion.service.ExpansionService",
            str(settings.expansion_port),
            "--defaultEnvironmentType=EMBEDDED",
            "--experiments=use_deprecated_read",
            options=(*_LOGGING, scratch, "-XX:TieredStopAtLevel=1"),
        ),
        env=jars,
        address=settings.expansion_endpoint,
        ready=tcp_ready(settings.host, settings.expansion_port),
        ports={"expansion_port": settings.expansion_port},
    )
    workers = Service(
        name="beam-workers",
        argv=(sys.executable, "-m", "infra.worker_pool"),
        address=settings.worker_endpoint,
        ready=tcp_ready(settings.host, settings.worker_port),
        ports={"worker_port": settings.worker_port},
    )
    return [job_server, expansion, workers]


@lru_cache
def _java(settings: Settings) -> Java:
    return find_java(settings, os.environ)


def java_command(
    java: Java, heap: str, main_class: str, *arguments: str, options: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The command of a JVM with this heap (`512m`, `1g`)."""
    # Serial collection: heaps are small, and parallel collectors would take both cores of a small machine.
    memory = (f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError")
    return (str(java.executable), *memory, *options, main_class, *arguments)


def _kafka_answers(settings: Settings) -> bool:
    if not accepts(settings.host, settings.kafka_port):
        return False
    try:
        return bool(kafka.admin(settings).list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def _prepare_kafka(settings: Settings, home: Path) -> None:
    """Write the broker's configuration, and on first use the cluster's identity."""
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    retention_ms = -1 if settings.kafka_retention_hours < 0 else settings.kafka_retention_hours * 3_600_000
    properties = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{settings.host}:{settings.kafka_controller_port}",
        "listeners": (
            f"PLAINTEXT://{settings.host}:{settings.kafka_port},"
            f"CONTROLLER://{settings.host}:{settings.kafka_controller_port}"
        ),
        "advertised.listeners": f"PLAINTEXT://{settings.host}:{settings.kafka_port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": logs,
        # Topics are made on purpose, with the number of partitions that the catalog says.
        "auto.create.topics.enable": "false",
        # By record timestamp: a limit would drop history the moment it is loaded.
        "log.retention.ms": retention_ms,
        # One broker, so one copy of everything.
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # A broker that was killed may register again only after its old session has ended.
        "broker.session.timeout.ms": 6000,
        "broker.heartbeat.interval.ms": 1500,
        "log.cleaner.dedupe.buffer.size": 8_000_000,
    }
    text = "".join(f"{name}={value}\n" for name, value in properties.items())
    (home / "server.properties").write_text(text)
    if not (logs / "meta.properties").exists():
        _format_kafka(settings, home)


def _format_kafka(settings: Settings, home: Path) -> None:
    import base64  # noqa: PLC0415 - first start only
    import subprocess  # noqa: PLC0415

    # One that begins with `-`, as one of 64 does, would be taken for an option, here and by Kafka's own tools.
    drawn = uuid.uuid4().bytes
    cluster_id = base64.urlsafe_b64encode(bytes([drawn[0] & 0x7F]) + drawn[1:]).decode().rstrip("=")
    arguments = ("format", "-t", cluster_id, "-c", str(home / "server.properties"), "--ignore-formatted")
    command = java_command(_java(settings), "256m", "kafka.tools.StorageTool", *arguments)
    environment = {**os.environ, "CLASSPATH": classpath(resolve("kafka", settings))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"Kafka's storage in {home} could not be formatted: {done.stderr or done.stdout}"
        raise RuntimeError(msg)


_CLICKHOUSE_CONFIG = """\
<clickhouse>
  <logger><level>warning</level><console>1</console></logger>
  <listen_host>{host}</listen_host>
  <http_port>{http_port}</http_port>
  <tcp_port>{tcp_port}</tcp_port>
  <path>{home}/data/</path>
  <tmp_path>{home}/tmp/</tmp_path>
  <user_files_path>{home}/user_files/</user_files_path>
  <format_schema_path>{home}/format_schemas/</format_schema_path>
  <max_server_memory_usage>{memory}</max_server_memory_usage>
  <timezone>UTC</timezone>
  <user_directories><users_xml><path>{home}/users.xml</path></users_xml></user_directories>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
</clickhouse>
"""
_CLICKHOUSE_USERS = """\
<clickhouse>
  <profiles><default><max_threads>{threads}</max_threads></default></profiles>
  <quotas><default/></quotas>
  <users>
    <{user}>
      <password>{password}</password>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <access_management>1</access_management>
    </{user}>
  </users>
</clickhouse>
"""


def _prepare_flink(settings: Settings, home: Path) -> None:
    """Remove what a killed job server left of RocksDB; no job begins from it. A cluster may still be using its own."""
    if settings.flink_master == "[local]":
        shutil.rmtree(home / "rocksdb", ignore_errors=True)


def _prepare_clickhouse(settings: Settings, home: Path) -> None:
    """Write the configuration of a real server."""
    from xml.sax.saxutils import escape  # noqa: PLC0415 - only where there is a binary

    home.mkdir(parents=True, exist_ok=True)
    config = _CLICKHOUSE_CONFIG.format(
        host=settings.host,
        http_port=settings.clickhouse_port,
        tcp_port=settings.clickhouse_native_port,
        home=escape(str(home)),
        memory=settings.clickhouse_memory_bytes,
    )
    (home / "config.xml").write_text(config)
    users = _CLICKHOUSE_USERS.format(
        threads=settings.clickhouse_threads,
        user=settings.clickhouse_user,
        password=escape(settings.clickhouse_password),
    )
    (home / "users.xml").touch(mode=0o600)
    (home / "users.xml").write_text(users)
