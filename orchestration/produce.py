"""Writes events to the log: in order, keyed, acknowledged by all replicas, each exactly once, at the wished pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from infra.settings import Settings

LARGEST_MESSAGE_BYTES = 4_000_000
CHECK_EVERY = 1_000  # records between two looks at the acknowledgements
_ADMIN_TIMEOUT_S = 60
_QUEUE_MESSAGES = 400_000
_LONGEST_NAP_S = 0.2

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
    clock: Callable[[], float] = time.time
    sent: int = field(default=0, init=False)
    acknowledged: int = field(default=0, init=False)
    _failed: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": self.settings.bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",  # the Java client's: every client puts a key where this one does
                "compression.type": "lz4",
                "linger.ms": 20,
                "batch.size": 500_000,
                "message.max.bytes": LARGEST_MESSAGE_BYTES,
                "queue.buffering.max.messages": _QUEUE_MESSAGES,
                "queue.buffering.max.kbytes": 512_000,
                "message.timeout.ms": 300_000,  # a broker that is away for a while loses nothing
            }
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


def ensure_event_topic(settings: Settings, topic: str, partitions: int) -> int:
    """Create the topic of events if it is missing; returns its number of partitions.

    Nothing in it ever expires by age: record timestamps are the events' own, and history would be deleted at once.

    Raises:
        ProduceError: the broker cannot be reached, or refuses.
    """
    admin = AdminClient({"bootstrap.servers": settings.bootstrap, "socket.timeout.ms": 10_000})
    new = NewTopic(
        topic,
        num_partitions=partitions,
        config={
            "retention.ms": "-1",
            "message.timestamp.type": "CreateTime",
            "max.message.bytes": str(LARGEST_MESSAGE_BYTES),
        },
    )
    try:
        admin.create_topics([new], operation_timeout=_ADMIN_TIMEOUT_S)[topic].result(_ADMIN_TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            message = (
                f"topic `{topic}` must exist; got `{error.args[0].str()}` from `{settings.bootstrap}`. "
                "start the stack with `lockstep up`, or set LOCKSTEP_KAFKA_BOOTSTRAP"
            )
            raise ProduceError(message) from error
    return _partitions(admin, topic)


def _partitions(admin: AdminClient, topic: str) -> int:
    deadline = time.monotonic() + _ADMIN_TIMEOUT_S
    while True:
        found: Any = admin.list_topics(topic, timeout=_ADMIN_TIMEOUT_S).topics[topic]
        if found.error is None and found.partitions:
            return len(found.partitions)
        if time.monotonic() > deadline:
            message = f"topic `{topic}` must answer within {_ADMIN_TIMEOUT_S} s; got {found.error}"
            raise ProduceError(message)
        time.sleep(0.1)


def _reason(topic: str, failed: dict[str, int]) -> str:
    what = "; ".join(f"{count} times {reason}" for reason, count in failed.items())
    return f"every event must be acknowledged by topic `{topic}`; got {what}. the others were written; send again"
