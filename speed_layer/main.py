"""Running the speed layer: submit the job, watch it, submit it again when it is gone, stop it in good order.

A restart replays the log from its beginning. Every row is an upsert whose version is the number of events folded, so
what is in the tables stays until the replay has caught up. A process that finds its own job running takes it over.
"""

import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass

import grpc
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException

from infra import kafka
from infra.clickhouse import connect
from infra.settings import Settings
from metrics.catalog import Catalog
from serving import schema
from serving.versions import note_live
from speed_layer import flink, jobs, published
from speed_layer.displaced import Sweeper
from speed_layer.lag import LagReport
from speed_layer.ledger_check import LedgerCheck
from speed_layer.log import greatest_watermark
from speed_layer.lookups import Archiving
from speed_layer.pipeline import build
from speed_layer.publish import progress_ddl
from speed_layer.published import Goal
from speed_layer.side_outputs import ROOMY

POLL_S = 0.5
PARTITIONS_EVERY_S = 5.0
DRAIN_S = 10.0
_FOREVER = 1 << 62
LOOKUP_PARTITIONS = 1
"""Partitions of a lookup's topic that does not exist yet."""

# The last one is how Beam's SDK says that the job server refused or the expansion service does not answer.
_AWAY = (ConnectionError, OSError, ClickHouseError, KafkaException, kafka.TopicError, grpc.RpcError, RuntimeError)

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """The outside world of a run, so that tests can replace it.

    Attributes:
        stop: Set when the run should end.
        sleep: Waits for some seconds, or until `stop` is set.
    """

    stop: threading.Event
    sleep: Callable[[float], object]


def run(
    settings: Settings,
    catalog: Catalog,
    until_drained: bool = False,  # noqa: FBT001, FBT002
    only: Collection[str] = (),
) -> int:
    """Runs the speed layer until SIGTERM or SIGINT, or until the log as of now is published.

    Args:
        settings: Where everything is.
        catalog: What to compute.
        until_drained: End once everything before the log's end offsets as of now is in the tables, and all slices
            whose end the watermark has passed have had their on-time pane.
        only: Metrics to compute beside a speed layer that runs with an older catalog: this one leaves dead letters,
            late events and alerts to the other. None: all metrics, and everything else.

    Returns:
        The exit code: 0.

    Raises:
        KafkaUnavailableError: No broker answered at the start.
        ClickHouseUnavailableError: No ClickHouse answered at the start.
        JobServerUnavailableError: No job server answered at the start.
    """
    stop = threading.Event()
    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _Run(settings, catalog, Watch(stop, stop.wait), only).until(drained=until_drained)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Run:
    def __init__(self, settings: Settings, catalog: Catalog, watch: Watch, only: Collection[str] = ()) -> None:
        self._settings = settings
        self._whole = catalog
        self._catalog = catalog.only(only) if only else catalog
        self._beside = bool(only)
        self._watch = watch
        self._database = settings.database(catalog.source)
        # a job beside another has a name that the other does not take for an older version of itself
        self._prefixes = [f"lockstep-{self._database}+", f"lockstep-{self._database}-"][: 1 if only else 2]
        self._partitions = 0
        self._count_again = 0.0
        self._job: str | None = None
        self._own = False
        self._sweeper: Sweeper | None = None
        self._ledger: LedgerCheck | None = None
        self._lags: LagReport | None = None

    @property
    def _name(self) -> str:
        """The job's: one that reads fewer partitions than there are is another job, as one of another catalog is."""
        return f"{self._prefixes[-1]}{self._catalog.version}-{self._partitions}p"

    def until(self, *, drained: bool) -> int:
        settings, catalog = self._settings, self._catalog
        kafka.ensure_topics(settings, _missing(settings, {catalog.topic: catalog.topic_partitions}))
        outputs = [catalog.dlq_topic, catalog.late_topic, *(alert.topic for alert in catalog.alerts)]
        kafka.ensure_topics(settings, _missing(settings, dict.fromkeys(outputs, 1)), ROOMY)
        topics = {lookup.topic: LOOKUP_PARTITIONS for lookup in catalog.lookups}
        kafka.ensure_topics(settings, _missing(settings, topics), {"cleanup.policy": "compact"})
        schema.apply(connect(settings), self._whole, self._database)
        client = connect(settings, self._database)
        client.command(progress_ddl(self._database))
        self._sweeper = Sweeper(client, catalog)
        goal = self._goal()
        if self._beside:
            done = dict.fromkeys(goal.ends, _FOREVER)
        else:
            done = published.forget_progress(client, catalog, self._database, goal.ends)
            self._ledger = LedgerCheck(settings, client, catalog)
            self._lags = LagReport(settings, client, catalog)
        archiving = Archiving(settings, connect(settings, self._database), catalog.lookups)
        try:
            return self._run(client, goal, done, drained=drained)
        finally:
            archiving.stop()
            if self._ledger:
                self._ledger.close()

    def _run(self, client: Client, goal: Goal, done: dict[int, int], *, drained: bool) -> int:
        catalog = self._catalog
        if drained and self._is_drained(client, goal):
            logger.info("`%s` is already published up to its end", catalog.topic)
            return 0
        self._ensure_job(done)
        note_live(client, self._database, catalog.metrics)
        try:
            self._watch_job(lambda: drained and self._is_drained(client, goal), client, done)
            if not drained:
                self._drain(client)
        finally:
            if self._own or not drained:
                self._cancel()
        return 0

    def _watch_job(self, finished: Callable[[], bool], client: Client, done: dict[int, int]) -> None:
        """Polls until finished or told to stop; brings the job back when it is gone.

        What is done grows with what is published; a job beside another leaves the same to it as at the start.
        """
        while not self._watch.stop.is_set() and not finished():
            self._watch.sleep(POLL_S)
            try:
                state = jobs.state(self._settings, self._job) if self._job else "LOST"
                if state not in jobs.LIVE:
                    logger.warning("job `%s` is %s; submitting it again", self._name, state)
                    self._ensure_job(done if self._beside else published.frontier(client, self._catalog))
                elif self._has_new_partitions():
                    logger.warning("`%s` has other partitions than before; reading all of it", self._catalog.topic)
                    self._ensure_job(done if self._beside else published.frontier(client, self._catalog))
                if self._sweeper:
                    self._sweeper.sweep_now_and_then()
                if self._lags:
                    self._lags.write_now_and_then()
                if self._ledger:
                    self._ledger.look_now_and_then()
            except _AWAY as error:
                logger.warning("%s; waiting", error)

    def _drain(self, client: Client) -> None:
        """Gives what is in the log by now a moment to be published; the rest is replayed at the next start."""
        deadline = time.monotonic() + DRAIN_S
        try:
            goal = self._goal()
            while time.monotonic() < deadline and not self._is_drained(client, goal):
                time.sleep(POLL_S)
        except _AWAY as error:
            logger.warning("%s; stopping without draining", error)

    def _is_drained(self, client: Client, goal: Goal) -> bool:
        try:
            if not published.is_drained(client, self._catalog, goal):
                return False
            if self._sweeper:
                self._sweeper.sweep()
            if self._lags:
                self._lags.write()
            if self._ledger:
                self._ledger.check()
            return True
        except _AWAY as error:
            logger.warning("%s; waiting", error)
            return False

    def _ensure_job(self, done: dict[int, int]) -> None:
        """Takes over this catalog's job if it runs, stops jobs of other versions of it, else submits one."""
        self._partitions = len(kafka.partitions(self._settings, self._catalog.topic))
        self._job = None
        # The job server takes a job for running that ended in Flink while nobody listened.
        runs = bool(flink.running(self._settings, self._name))
        for job in jobs.jobs(self._settings):
            if job.state in jobs.LIVE and job.name == self._name and runs and self._job is None:
                self._job = job.id
            elif job.state in jobs.LIVE and job.name.startswith(tuple(self._prefixes)):
                jobs.cancel(self._settings, job.id)
        if self._job is not None:
            logger.info("job `%s` is running already", self._name)
            return
        for prefix in self._prefixes:
            flink.cancel(self._settings, prefix)
        pipeline = build(self._settings, self._catalog, uuid.uuid4().hex, self._name, self._partitions, done)
        self._job = pipeline.run()._job_id
        self._own = True
        logger.info("submitted job `%s`", self._name)

    def _has_new_partitions(self) -> bool:
        """Whether partitions were added to the topic; a job reads those that were there when it was submitted."""
        if time.monotonic() < self._count_again:
            return False
        self._count_again = time.monotonic() + PARTITIONS_EVERY_S
        return len(kafka.partitions(self._settings, self._catalog.topic)) != self._partitions

    def _cancel(self) -> None:
        """Ends the job in Flink by its name: the job server may be away, or take one that restarts for over."""
        if self._job is None:
            return
        try:
            jobs.cancel(self._settings, self._job)
        except jobs.JobServerUnavailableError as error:
            logger.warning("%s; Flink is asked instead", error)
        flink.cancel(self._settings, self._name)

    def _goal(self) -> Goal:
        """The log as it is now."""
        found = kafka.log_offsets(self._settings, self._catalog.topic)
        ends = {number: end if end > begin else 0 for number, (begin, end) in found.items()}
        return Goal(ends, greatest_watermark(self._settings, self._catalog) if any(ends.values()) else None)


def _missing(settings: Settings, topics: dict[str, int]) -> dict[str, int]:
    """Those topics that do not exist; one that does keeps the partitions it has."""
    missing = {}
    for topic, count in topics.items():
        try:
            kafka.partitions(settings, topic)
        except kafka.TopicError:
            missing[topic] = count
    return missing
