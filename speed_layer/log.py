"""The log as a worker sees it: one consumer and one reader per topic partition, kept where they stand.

Runner and worker come back to a partition many times a second with fresh objects. Assigning a consumer anew and
re-reading the dedup horizon on each turn would starve it, so both are kept process-wide while the place fits.
"""

import logging
import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from threading import Lock

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from infra import kafka
from infra.avro import unframe_of
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import PartitionReader
from metrics.event import FURTHEST_AHEAD_MS
from metrics.window import milliseconds
from speed_layer.lookups import PartitionLookups

LARGEST_CHUNK = 100_000
LARGEST_CHUNK_BYTES = 64 << 20
TICK_S = 0.25
"""At the head all partitions are read at the same moments: what they bring is then merged and written together."""

_BETWEEN_STEPS_S = 0.15

_FETCH_WAIT_MS = 30
"""How long the broker waits for more records before it answers."""

_STEP = 20_000
_FIRST_FETCH_S = 0.5
_FOLLOW_EVERY_S = 0.5
_ASK_S = 5.0
_UNUSED_AFTER_S = 120.0
_RETRY_S = 1.0

logger = logging.getLogger(__name__)


@dataclass
class Records:
    """A run of records of one topic partition.

    Attributes:
        start: First offset asked for.
        end: Offset to go on from; exclusive. Offsets without a record (transaction markers) lie between.
        at_head: Whether nothing more was in the log.
    """

    start: int
    end: int
    at_head: bool = False
    offsets: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)

    def add(self, messages: list[Message]) -> None:
        """Appends messages that hold a record."""
        self.offsets += [m.offset() for m in messages]
        self.times += [m.timestamp()[1] for m in messages]
        self.values += [m.value() for m in messages]
        self.end = self.offsets[-1] + 1


class PartitionLog:
    """One topic partition of a catalog's log, read forward from a place, with the reader that judges its records.

    `work_s` is how long the last chunk took to become elements, `rest_s` how long it may rest until the next turn.
    """

    def __init__(self, settings: Settings, catalog: Catalog, topic_partition: int) -> None:
        self.topic_partition = topic_partition
        # A registry that is away is waited for, as Kafka is: no record is judged by it.
        self._unframe = unframe_of(settings, catalog, patience_s=None)
        self.lookups = PartitionLookups(settings, catalog, topic_partition) if catalog.lookups else None
        self.reader = self._new_reader(catalog)
        self.beaten: int | None = None
        self.beat_again = 0.0
        self.watermark: int | None = None
        self.work_s = 0.0
        self.used = time.monotonic()
        self.lock = Lock()
        self._settings = settings
        self._catalog = catalog
        self._position: int | None = None
        self._head: int | None = None
        self._behind = True
        self.rest_s = 0.0
        self._consumer: Consumer = kafka.consumer(
            settings,
            f"lockstep-speed-{catalog.source}",
            {
                "enable.partition.eof": True,
                "fetch.message.max.bytes": 4 << 20,
                "fetch.error.backoff.ms": 100,
                # a turn takes what has come: an answer to each small batch would only cost the broker and the worker
                "fetch.min.bytes": 64 << 10,
                "fetch.wait.max.ms": _FETCH_WAIT_MS,
            },
        )

    def seek(self, offset: int) -> None:
        """Stands at `offset`, with the ids of the horizon before it in mind."""
        if self._position == offset:
            return
        begin = begin_of(self._settings, self._catalog, self.topic_partition)
        self.reader = self._new_reader(self._catalog)
        self.watermark = None
        self._assign(max(begin, offset - self._catalog.dedup_horizon))
        while self._position is not None and self._position < offset:
            records = self._fetch(offset, _FIRST_FETCH_S)
            if records.offsets:
                self.reader.remember(self.topic_partition, records.offsets, records.times, records.values)
                self._observe(records)
        self._assign(offset)

    def next(self) -> Records:
        """Reads on: a large chunk while behind, else what has come since the last turn."""
        records = self._fetch(None, _FIRST_FETCH_S if self._behind else 0.0)
        self._behind = len(records.offsets) >= _STEP
        # one that has nothing, or is much work however little comes, is asked less often
        least = min(TICK_S, 2 * self.work_s) if records.offsets else TICK_S
        self.rest_s = 0.0 if self._behind else until_tick(time.time(), least)
        self._observe(records)
        if records.at_head and records.offsets:
            self._keep_up()
        return records

    def forget(self) -> None:
        """Stands nowhere: the next `seek` begins anew."""
        self._position = None

    def close(self) -> None:
        """Closes the consumer."""
        self._consumer.close()

    def _new_reader(self, catalog: Catalog) -> PartitionReader:
        return PartitionReader(catalog, self._unframe, self.lookups.join if self.lookups else None)

    def _observe(self, records: Records) -> None:
        if records.times:
            reached = latest(records.times, _now_ms()) - milliseconds(self._catalog.out_of_orderness)
            self.watermark = reached if self.watermark is None else max(self.watermark, reached)

    def _keep_up(self) -> None:
        """Lags behind the others no more than records may be out of order: there is nothing left to read that could.

        A partition whose only clients are slow, or have clocks that are behind, would else hold all others back for as
        long as they write. Their events count all the same.
        """
        followed = followed_watermark(self._settings, self._catalog)
        if followed is not None and self.watermark is not None:
            self.watermark = max(self.watermark, followed - milliseconds(self._catalog.out_of_orderness))

    def _assign(self, offset: int) -> None:
        self._consumer.assign([TopicPartition(self._catalog.topic, self.topic_partition, offset)])
        self._position = offset
        self._head = None
        self._behind = True

    def _fetch(self, until: int | None, patience_s: float) -> Records:
        """Records from the position on, up to `until` (exclusive), the head or a full chunk, as they come in time."""
        assert self._position is not None
        records = Records(self._position, self._position)
        size, left = 0, patience_s
        deadline = time.monotonic() + patience_s
        while len(records.offsets) < LARGEST_CHUNK and size < LARGEST_CHUNK_BYTES and left >= 0:
            messages = self._consumer.consume(_STEP, min(left, _BETWEEN_STEPS_S))
            good = [m for m in messages if m.error() is None and (until is None or m.offset() < until)]
            if good:
                records.add(good)
                size += sum(map(len, good))
                if len(good) == _STEP:
                    deadline = time.monotonic() + _BETWEEN_STEPS_S
            for message in messages:
                error = message.error()
                if error is not None:
                    self._on_error(error, message, records)
            if self._head == records.end:
                break
            if until is not None and any(m.error() is None and m.offset() >= until for m in messages):
                records.end = until
                break
            left = deadline - time.monotonic()
        records.at_head = self._head == records.end
        self._position = records.end
        return records

    def _on_error(self, error: KafkaError, message: Message, records: Records) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self._head = records.end = max(records.end, message.offset())
        elif code in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
            begin = begin_of(self._settings, self._catalog, self.topic_partition)
            logger.error(
                "offsets %d to %d of `%s`/%d have expired before they were read; going on from %d",
                records.end,
                begin,
                self._catalog.topic,
                self.topic_partition,
                begin,
            )
            records.end = max(records.end, begin)
            self._assign(records.end)
        elif error.fatal():
            raise KafkaException(error)
        else:
            logger.warning("kafka: %s; waiting", error.str())


_LOGS: dict[tuple[str, str, int], PartitionLog] = {}
_LOCK = Lock()
_FOLLOWED: dict[str, tuple[float, int | None]] = {}


def partition_log(job: str, settings: Settings, catalog: Catalog, topic_partition: int) -> PartitionLog:
    """This process's view of a topic partition for a job; those unused for long are closed."""
    now = time.monotonic()
    with _LOCK:
        for key, log in list(_LOGS.items()):
            if now - log.used > _UNUSED_AFTER_S and not log.lock.locked():
                _LOGS.pop(key).close()
        log = _LOGS.setdefault((job, catalog.topic, topic_partition), None)  # type: ignore[arg-type]
        if log is None:
            log = _LOGS[job, catalog.topic, topic_partition] = PartitionLog(settings, catalog, topic_partition)
        log.used = now
        return log


def begin_of(settings: Settings, catalog: Catalog, topic_partition: int) -> int:
    """The first offset still in the log; waits for Kafka as long as it takes."""
    while True:
        try:
            return kafka.log_offsets(settings, catalog.topic)[topic_partition][0]
        except (kafka.KafkaUnavailableError, kafka.TopicError, KafkaException) as error:
            logger.warning("%s; waiting", error)
            time.sleep(_RETRY_S)


def until_tick(now: float, least: float) -> float:
    """Seconds from `now` to the first multiple of `TICK_S` that is at least `least` seconds away."""
    return math.ceil((now + least) / TICK_S) * TICK_S - now


def latest(stamps: Collection[int], now: int) -> int:
    """The greatest record timestamp that can be true, in ms; `now` if all are ahead of it by more than the bound.

    The bound is that of event times, 5 minutes. Only watermarks look at the clock. Were such a record to move them, all
    slices would be closed ahead of their time; were those of a partition without others to move nothing, it would hold
    all others up.

    Args:
        stamps: At least one.
        now: The time of this machine's clock.
    """
    greatest, most = max(stamps), now + FURTHEST_AHEAD_MS
    return greatest if greatest <= most else max((stamp for stamp in stamps if stamp <= most), default=now)


def greatest_stamps(settings: Settings, catalog: Catalog) -> dict[int, int]:
    """By topic partition, the greatest timestamp of its records in ms, true or not; without those that are empty.

    Raises:
        KafkaException: No broker answered.
        TopicError: There is no such topic.
    """
    client = _ADMINS.get(settings.bootstrap) or kafka.admin(settings)
    _ADMINS[settings.bootstrap] = client
    # asked for each time, as partitions may be added
    known = client.list_topics(catalog.topic, timeout=_ASK_S).topics[catalog.topic]
    if not known.partitions:
        msg = f"topic `{catalog.topic}` does not exist at {settings.bootstrap}"
        raise kafka.TopicError(msg)
    wanted = {TopicPartition(catalog.topic, number): OffsetSpec.max_timestamp() for number in known.partitions}
    found = client.list_offsets(wanted, request_timeout=_ASK_S)
    stamps = {place.partition: future.result(_ASK_S).timestamp for place, future in found.items()}
    return {number: stamp for number, stamp in stamps.items() if stamp >= 0}


def greatest_watermark(settings: Settings, catalog: Catalog) -> int | None:
    """The watermark that the whole log leads to, in ms, once it is read; None for an empty log.

    Raises:
        KafkaException: No broker answered.
        TopicError: There is no such topic.
    """
    now = _now_ms()
    # where a partition's greatest timestamp cannot be true, the one it hides may be as late as now
    stamps = [latest([stamp], now) for stamp in greatest_stamps(settings, catalog).values()]
    return max(stamps) - milliseconds(catalog.out_of_orderness) if stamps else None


def followed_watermark(settings: Settings, catalog: Catalog) -> int | None:
    """The watermark that a partition at its head may take over: that of the whole log, asked for now and then.

    A partition that is still behind holds the pipeline's watermark itself, so this one need not wait for it.
    None while Kafka is away or the log is empty.
    """
    now = time.monotonic()
    asked, known = _FOLLOWED.get(catalog.topic, (0.0, None))
    if now - asked >= _FOLLOW_EVERY_S:
        try:
            known = greatest_watermark(settings, catalog)
        except (KafkaException, kafka.KafkaUnavailableError, kafka.TopicError, TimeoutError):
            return known
        _FOLLOWED[catalog.topic] = (now, known)
    return known


_ADMINS: dict[str, AdminClient] = {}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
