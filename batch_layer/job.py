"""The Spark job: one read of the offsets of a plan, from which everything of a run is computed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyspark
from pyspark.sql import DataFrame, SparkSession

from batch_layer.lookups import Versions
from batch_layer.manifest import Plan
from batch_layer.reading import reader_of
from batch_layer.rows import ROW, Pass, ddl
from infra import jars
from infra.avro import unframe_of
from infra.java import find_java, require_spark_module
from infra.service import accepts
from infra.settings import Settings
from metrics.catalog import Catalog

ROWS_PER_BATCH = 20_000
"""Rows that Spark hands to Python together."""

BYTES_PER_BATCH = 16 << 20

REGISTRY_PATIENCE_S = 60.0
"""How long a run waits for a schema registry that is away; then it fails, and nothing of it is seen."""

_OPTIONS = {
    # Times are Kafka's; no session's zone may shift them.
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(ROWS_PER_BATCH),
    # Rows that hold payloads are large.
    "spark.sql.execution.arrow.maxBytesPerBatch": str(BYTES_PER_BATCH),
    # Small results end in few tasks, hence few inserts and few parts.
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
    "spark.sql.adaptive.advisoryPartitionSizeInBytes": "32m",
    # A value that does not fit is an error, never NULL.
    "spark.sql.ansi.enabled": "true",
    "spark.python.worker.reuse": "true",
}

_LOGGING = """\
rootLogger.level = error
# Spark takes the shell for a person's and would raise the level, and say so, were its own not named.
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
# Says what a run waits for when no worker of a cluster has room for its executors.
logger.scheduler.name = org.apache.spark.scheduler.TaskSchedulerImpl
logger.scheduler.level = warn
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss'Z'}{UTC} %p %c{1}: %m%n%ex
"""


SHORT_RUN_RECORDS = 1_000_000
"""Up to here a run ends before Java's optimizing compiler has paid for itself (29 s of CPU against 19 s at 200,000)."""


RECORDS_PER_TASK = 500_000
"""How many events a task may have to hold at once, where it needs all of some keys."""


class SparkUnavailableError(ConnectionError):
    """No Spark master answered at the configured address."""


@contextmanager
def spark_session(settings: Settings, records: int) -> Iterator[SparkSession]:
    """A session as the settings say, with Kafka's source, for reading about so many records; stopped at the end.

    Raises:
        JavaError: There is no Java 17, or one that lacks what Spark needs.
        SparkUnavailableError: No master of a standalone cluster answered.
    """
    _require_master(settings.spark_master)
    scratch = settings.data_dir.absolute() / "spark"
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    java = find_java(settings, os.environ)
    require_spark_module(java)
    os.environ["JAVA_HOME"] = str(java.home)
    # Spark would look its own address up, and say so.
    os.environ["SPARK_LOCAL_IP"] = settings.host
    logging = scratch / "log4j2.properties"
    logging.write_text(_LOGGING)
    builder = SparkSession.builder.appName("lockstep-batch").master(settings.spark_master)
    flags = ["-XX:+UseParallelGC"]
    if records <= SHORT_RUN_RECORDS:
        # with one compiler alone Java keeps 48 MB for what it compiles, which a session of several runs fills
        flags += ["-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=240m"]
    options = _OPTIONS | {
        "spark.jars": ",".join(map(str, _kafka_jars(settings))),
        "spark.driver.memory": settings.spark_heap,
        "spark.driver.extraJavaOptions": " ".join([*flags, f"-Dlog4j2.configurationFile={logging.as_uri()}"]),
        "spark.driver.host": settings.host,
        "spark.driver.bindAddress": settings.host,
        "spark.local.dir": str(scratch),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        # Several tasks per core even out groups of unlike size; adaptive execution joins small ones.
        "spark.sql.shuffle.partitions": str(max(8, records // RECORDS_PER_TASK)),
    }
    if not settings.spark_master.startswith("local"):
        options |= {
            "spark.executor.memory": settings.spark_heap,
            "spark.executor.extraJavaOptions": " ".join(flags),
        }
    for name, value in options.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    try:
        yield session
    finally:
        session.stop()


def read_rows(
    session: SparkSession, settings: Settings, catalog: Catalog, plan: Plan, lookups: Versions | None = None
) -> DataFrame:
    """The rows of one pass over the plan's ranges; see `batch_layer.rows`.

    One Spark partition is one topic partition in offset order, for dispositions depend on the order. Python reads the
    log itself: a record that the JVM hands over costs more than one that Kafka's C client brings.
    """
    unframe = unframe_of(settings, catalog, patience_s=REGISTRY_PATIENCE_S)
    read = Pass(catalog, plan.ranges, plan.days, reader_of(settings, catalog.topic, plan).read, unframe, lookups)
    count = len(plan.ranges)
    return session.range(0, count, 1, count).mapInArrow(read, ddl(ROW))


def _require_master(url: str) -> None:
    """Refuses a standalone cluster of which no master answers; Spark itself would say nothing of it for a minute."""
    kind, _, places = url.partition("://")
    if kind != "spark":
        return
    masters = [place.rpartition(":") for place in places.split(",")]
    if not any(port.isdecimal() and accepts(host.strip("[]"), int(port)) for host, _, port in masters):
        msg = f"no Spark master answers at `{url}`. start it, or correct `LOCKSTEP_SPARK_MASTER`"
        raise SparkUnavailableError(msg)


def _kafka_jars(settings: Settings) -> list[Path]:
    """The jars of Kafka's source without those that Spark itself brings, be it in another version."""
    own = {_artifact(path) for path in (Path(pyspark.__file__).parent / "jars").glob("*.jar")}
    return [path for path in jars.resolve("spark", settings) if _artifact(path) not in own]


def _artifact(jar: Path) -> str:
    """`spark-tags_2.13-4.0.0.jar` -> `spark-tags_2.13`."""
    return jar.stem.rsplit("-", 1)[0]
