"""Writes events to the log: in order, keyed, acknowledged by all replicas, each exactly once, at the wished pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from infra.kafka import admin, ensure_topics, producer
from infra.settings import Settings

LARGEST_MESSAGE_BYTES = 4_000_000
CHECK_EVERY = 1_000  # records between two looks at the acknowledgements
_ADMIN_TIMEOUT_S = 60
_LONGEST_NAP_S = 0.2

Clock = Callable[[], float]

Placed = Callable[[int, int], None]
"""Called with the topic partition and the offset that a record got."""


class ProduceError(RuntimeError):
    """Events could not be written; the text says how many and why."""


class Pace(Protocol):
    """When a record may be sent."""

    def due(self, index: int, at: int) -> float:
        """Clock reading, in seconds, before which record number `index` with timestamp `at` (ms) must not be sent."""
        ...


@dataclass(frozen=True)
class AtRate:
    """So many records a second, begun at a clock reading."""

    begun: float
    per_second: float

    def due(self, index: int, at: int) -> float:  # noqa: ARG002
        """A record every 1 / `per_second` seconds."""
        return self.begun + index / self.per_second


@dataclass
class ByTime:
    """As the timestamps are apart, `speed_up` times as fast; 1 with `origin` = `begun` is the wall clock."""

    begun: float
    speed_up: float = 1.0
    origin: int | None = None

    def due(self, index: int, at: int) -> float:  # noqa: ARG002
        """Time since the first record, or since `origin` (ms), shortened."""
        if self.origin is None:
            self.origin = at
        return self.begun + (at - self.origin) / 1000 / self.speed_up


@dataclass(frozen=True)
class Outgoing:
    """A record to be written.

    Attributes:
        key: the Kafka message key.
        value: the event's bytes.
        at: record timestamp, milliseconds since the epoch.
        partition: topic partition; -1 lets the key decide.
        placed: told where the record came to lie.
    """

    key: bytes | None
    value: bytes
    at: int
    partition: int = -1
    placed: Placed | None = None


@dataclass
class LogWriter:
    """Writes to one topic. Use as a context manager: leaving it waits for every acknowledgement.

    The order of the records of a key is the order of `send`, whatever is retried.
    """

    settings: Settings
    topic: str
    clock: Clock = time.time
    sent: int = field(default=0, init=False)
    acknowledged: int = field(default=0, init=False)
    _failed: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._producer = producer(
            self.settings,
            {
                "linger.ms": 20,
                "batch.size": 500_000,
                "message.max.bytes": LARGEST_MESSAGE_BYTES,
                "queue.buffering.max.kbytes": 512_000,
                "delivery.timeout.ms": 600_000,  # a broker that is away for a while loses nothing
            },
        )

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.flush()
        else:
            self._producer.flush(10)

    def send_all(
        self, records: Iterable[Outgoing], pace: Pace | None = None, progress: Callable[[int], None] | None = None
    ) -> None:
        """Send records in order.

        Args:
            records: what to send; taken one by one, so they may be made as they are sent.
            pace: when each is due; None: at full speed.
            progress: told how many more were sent, now and then.

        Raises:
            ProduceError: a record could not be written.
        """
        reported = self.sent
        for index, record in enumerate(records):
            if pace is not None:
                self._await(pace.due(index, record.at))
            self._send(record)
            if self.sent - reported >= CHECK_EVERY:
                self._producer.poll(0)
                self._check()
                if progress is not None:
                    progress(self.sent - reported)
                reported = self.sent
        if progress is not None:
            progress(self.sent - reported)

    def flush(self) -> None:
        """Wait until every record sent is acknowledged.

        Raises:
            ProduceError: one was not.
        """
        while self._producer.flush(1.0):
            self._check()
        self._check()

    def _await(self, due: float) -> None:
        while (left := due - self.clock()) > 0:
            self._producer.poll(min(left, _LONGEST_NAP_S))

    def _send(self, record: Outgoing) -> None:
        told = self._told if record.placed is None else partial(self._told, placed=record.placed)
        while True:
            try:
                self._producer.produce(
                    self.topic, record.value, record.key, record.partition, on_delivery=told, timestamp=record.at
                )
            except BufferError:
                self._producer.poll(0.05)
                self._check()
                continue
            except KafkaException as error:
                raise ProduceError(_reason(self.topic, {str(error.args[0]): 1})) from error
            self.sent += 1
            return

    def _told(self, error: KafkaError | None, message: Message, placed: Placed | None = None) -> None:
        if error is not None:
            reason = error.str()
            self._failed[reason] = self._failed.get(reason, 0) + 1
            return
        self.acknowledged += 1
        if placed is not None:
            placed(message.partition(), message.offset())

    def _check(self) -> None:
        if self._failed:
            raise ProduceError(_reason(self.topic, self._failed))


def ensure_event_topic(settings: Settings, topic: str, partitions: int, oldest: int, clock: Clock = time.time) -> None:
    """Make sure that the topic of events exists and keeps records as old as `oldest` (ms).

    Record timestamps are the events' own, so a broker that deletes by age would delete history as soon as it is
    written. A topic of the local broker is set to keep everything; that of another broker is left as it is.

    Raises:
        ProduceError: a broker of one's own would delete the records at once.
        TopicError: the topic has too few partitions.
        KafkaUnavailableError: no broker answers.
    """
    config = {
        "retention.ms": "-1",
        "message.timestamp.type": "CreateTime",
        "max.message.bytes": str(LARGEST_MESSAGE_BYTES),
    }
    if topic in ensure_topics(settings, {topic: partitions}, config):
        return
    client = admin(settings)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    found = client.describe_configs([resource])[resource].result(_ADMIN_TIMEOUT_S)
    retention = int(found["retention.ms"].value)
    if retention < 0:
        return
    if settings.kafka_bootstrap is None:
        keep = ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET)
        resource.add_incremental_config(keep)
        client.incremental_alter_configs([resource])[resource].result(_ADMIN_TIMEOUT_S)
    elif oldest < clock() * 1000 - retention:
        message = (
            f"topic `{topic}` must keep records as old as the oldest event; its `retention.ms` is {retention}: they "
            "would be deleted at once. set it to -1"
        )
        raise ProduceError(message)


def _reason(topic: str, failed: dict[str, int]) -> str:
    what = "; ".join(f"{count} times {reason}" for reason, count in failed.items())
    return f"every event must be acknowledged by topic `{topic}`; got {what}. the others were written; send again"
