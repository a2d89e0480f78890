"""The comparator in Flink SQL: job A as one statement, on a real Flink cluster that stays up from run to run.

Results go to a compacted topic, as Flink has no connector to ClickHouse. It is spared the ledger, the early panes, the
late topic and the dead letters: what is late or bad is left out. Copies are dropped by `ROW_NUMBER` with a time to live
as long as events may be late. The clock runs from the moment Flink calls the job running to the last result in the log.
"""

import json
import os
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from confluent_kafka import TopicPartition
from py4j.java_gateway import JavaGateway

from infra import kafka
from infra.flink_cluster import address, cluster_services
from infra.jars import resolve
from infra.java import find_java
from infra.measure import Meter, of_services
from infra.settings import Settings
from infra.stack import down, up
from metrics.disposition import COUNTED, DUPLICATE
from speed_layer.bench.backlog import Backlog, Place, Sum
from speed_layer.bench.run import BenchError, Run, Stretch

SERVICES = ("flink-jobmanager", "flink-taskmanager-1")
_PLANNER_HEAP = "512m"
_POLL_S = 0.05
_WAIT_S = 30.0
_LONGEST_S = 300.0


@dataclass(frozen=True)
class FlinkSql:
    """A cluster of one task manager, and a JVM beside it that plans statements and submits them.

    Attributes:
        settings: Where Kafka is.
        own: Settings of the cluster: a data directory and ports of its own.
        jvm: The planner's classes.
    """

    settings: Settings
    own: Settings
    jvm: Any

    def run(self, backlog: Backlog, *, dedup: bool = True) -> Run:
        """Reads the backlog once.

        Raises:
            BenchError: The job failed or did not end.
        """
        results = f"bench.results.{uuid.uuid4().hex[:8]}"
        config = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "compact"}
        kafka.ensure_topics(self.settings, {results: 1}, config)
        parts = {"system": of_services(self.own, SERVICES), "broker": of_services(self.settings, ("kafka",))}
        started = time.monotonic()
        with Meter(parts) as meter:
            before = meter.cpu()
            job = self._submit(backlog, results, "good_once" if dedup else "good")
            running_ms = self._finished(job)
            cpu_s = {part: seconds - before[part] for part, seconds in meter.cpu().items()}
        whole_s = time.monotonic() - started
        ended_ms, found = _results(self.settings, results)
        exact = found == backlog.expected(*([COUNTED] if dedup else [COUNTED, DUPLICATE]))
        done = self._ask(f"/jobs/{job}/checkpoints")["counts"]["completed"]
        kafka.admin(self.settings).delete_topics([results])
        stretch = Stretch(backlog.events, (ended_ms - running_ms) / 1000, cpu_s)
        return Run(stretch, whole_s, meter.peaks(), exact, {"checkpoints": done})

    def _submit(self, backlog: Backlog, results: str, read: str) -> str:
        """Plans and submits the statement; the job's id."""
        configuration = self.jvm.org.apache.flink.configuration.Configuration()
        for name, value in _options(self.settings, self.own).items():
            configuration.setString(name, str(value))
        environment = self.jvm.org.apache.flink.table.api.EnvironmentSettings.newInstance().inStreamingMode()
        tables = self.jvm.org.apache.flink.table.api.TableEnvironment.create(
            environment.withConfiguration(configuration).build()
        )
        (connector,) = resolve("flink-sql", self.settings)
        tables.executeSql(f"ADD JAR '{connector}'")
        text = Template(Path(__file__).with_suffix(".sql").read_text()).substitute(
            topic=backlog.topic, bootstrap=self.settings.bootstrap, results=results, read=read
        )
        *tables_and_views, insert = text.split(";\n")
        for statement in tables_and_views:
            tables.executeSql(statement)
        return str(tables.executeSql(insert).getJobClient().get().getJobID().toString())

    def _finished(self, job: str) -> int:
        """Waits for the end of a job; when it was running, in ms since the epoch."""
        deadline = time.monotonic() + _LONGEST_S
        while time.monotonic() < deadline:
            answer = self._ask(f"/jobs/{job}")
            if answer["state"] == "FINISHED":
                return int(answer["timestamps"]["RUNNING"])
            if answer["state"] in {"FAILED", "CANCELED"}:
                why = self._ask(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"][:1]
                msg = f"Flink's job is {answer['state']}: {str(why)[:2000]}"
                raise BenchError(msg)
            time.sleep(_POLL_S)
        msg = f"Flink's job did not end in {_LONGEST_S:g} s"
        raise BenchError(msg)

    def _ask(self, path: str) -> Any:  # noqa: ANN401 - whatever JSON says
        with urllib.request.urlopen(f"http://{address(self.own)}{path}", timeout=_WAIT_S) as answer:
            return json.load(answer)


@contextmanager
def flink_sql(settings: Settings, own: Settings, home: Path, owner_pid: int) -> Iterator[FlinkSql]:
    """Starts cluster and planner, and stops them.

    Args:
        settings: Where Kafka is.
        own: A data directory and ports for the cluster.
        home: Flink's home, see `infra.flink_cluster.distribution`.
        owner_pid: The process that the cluster must not outlive.
    """
    try:
        up(own, cluster_services(own, home, task_managers=1, slots=settings.parallelism), owner_pid=owner_pid)
        with _planner(own, home) as jvm:
            yield FlinkSql(settings, own, jvm)
    finally:
        down(own)


@contextmanager
def _planner(own: Settings, home: Path) -> Iterator[Any]:
    """A JVM with Flink's planner, which ends with this process."""
    java = str(find_java(own, os.environ).executable)
    with (own.log_dir / "planner.log").open("a") as log:
        gateway = JavaGateway.launch_gateway(
            classpath=str(home / "lib" / "*"),
            javaopts=[f"-Xmx{_PLANNER_HEAP}", "-XX:+UseSerialGC"],
            java_path=java,
            die_on_exit=True,
            enable_auth=True,
            redirect_stdout=log,
            redirect_stderr=log,
        )
        try:
            yield gateway.jvm
        finally:
            gateway.shutdown()


def _options(settings: Settings, own: Settings) -> Mapping[str, object]:
    """How the job runs: as the speed layer's does where that has a word for it, else as is best for it."""
    checkpoints = own.data_dir.absolute() / "checkpoints"
    return {
        "execution.target": "remote",
        "rest.address": own.host,
        "rest.port": own.flink_ui_port,
        "parallelism.default": settings.parallelism,
        "execution.checkpointing.interval": f"{settings.checkpoint_interval_ms} ms",
        "state.backend.type": "hashmap",
        "state.checkpoint-storage": "filesystem",
        "state.checkpoints.dir": f"file://{checkpoints}",
        "table.exec.state.ttl": "1 h",
        "table.local-time-zone": "UTC",
        "pipeline.object-reuse": "true",
    }


def _results(settings: Settings, topic: str) -> tuple[int, dict[Place, Sum]]:
    """When the last result was appended, in ms since the epoch, and the results by place."""
    ((_, end),) = kafka.log_offsets(settings, topic).values()
    consumer = kafka.consumer(settings, topic)
    consumer.assign([TopicPartition(topic, 0, 0)])
    last, found, read = 0, {}, 0
    while read < end:
        for message in consumer.consume(end - read, _WAIT_S):
            row = json.loads(message.value())
            found[row["slice_start"], row["event_type"]] = Sum(row["events"], row["cents"])
            last = max(last, message.timestamp()[1])
            read = message.offset() + 1
    consumer.close()
    return last, found
