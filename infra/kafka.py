"""Kafka for everything above: topics, a producer that repeats nothing, a consumer that commits nothing, log offsets.

Offsets are half-open: `begin` is the first offset still in the log, `end` the one the next record will get (of
committed transactions only). Offsets may have gaps (transaction markers), so `end - begin` is not a number of records.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka import IsolationLevel as _Isolation
from confluent_kafka.admin import AdminClient, ConfigResource, ListOffsetsResultInfo, NewTopic, OffsetSpec

from infra.settings import Settings

_TIMEOUT_S = 30.0
AWAY = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError.REQUEST_TIMED_OUT,
}
"""Errors that say that no broker can be reached."""


class KafkaUnavailableError(ConnectionError):
    """No broker answered at the configured address in the time allowed."""


class TopicError(LookupError):
    """A topic is missing, or has fewer partitions than asked for."""


def admin(settings: Settings) -> AdminClient:
    """An admin client; it connects on first use."""
    return AdminClient({"bootstrap.servers": settings.bootstrap, "log_level": 0})


def ensure_topics(
    settings: Settings,
    topics: Mapping[str, int],
    config: Mapping[str, str] | None = None,
    *,
    replication: int = 1,
    timeout_s: float = _TIMEOUT_S,
) -> list[str]:
    """Create the topics that are missing; return their names, once every topic can be used.

    Args:
        settings: where the brokers are.
        topics: number of partitions by topic name.
        config: topic configuration of new topics; event topics are never compacted.
        replication: copies of new topics.
        timeout_s: how long to wait for the broker.

    Raises:
        TopicError: an existing topic has fewer partitions than asked for (they are not added: that would move keys).
        KafkaUnavailableError: no broker answered in time.
    """
    client = admin(settings)
    existing = _partition_counts(settings, client, timeout_s)
    for name, wanted in topics.items():
        if name in existing and existing[name] < wanted:
            msg = (
                f"topic `{name}` must have at least {wanted} partitions; it has {existing[name]}. "
                f"ask for {existing[name]}, or create a new topic: adding partitions would move keys"
            )
            raise TopicError(msg)
    options = {"cleanup.policy": "delete", **(config or {})}
    missing = [
        NewTopic(name, num_partitions=count, replication_factor=replication, config=options)
        for name, count in topics.items()
        if name not in existing
    ]
    if not missing:
        return []
    for future in client.create_topics(missing, operation_timeout=timeout_s).values():
        try:
            future.result(timeout_s)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster
                raise
    created = [topic.topic for topic in missing]
    for name in created:
        _await_leaders(client, name, timeout_s)
    return created


def partitions(settings: Settings, topic: str, timeout_s: float = _TIMEOUT_S) -> list[int]:
    """The topic's partition numbers, ascending.

    Raises:
        TopicError: there is no such topic.
        KafkaUnavailableError: no broker answered in time.
    """
    counts = _partition_counts(settings, admin(settings), timeout_s)
    if topic not in counts:
        raise _no_topic(settings, topic)
    return list(range(counts[topic]))


@dataclass(frozen=True)
class Topic:
    """What the broker says of a topic: an id that no other topic of its name has, and its `cleanup.policy`."""

    topic_id: str
    cleanup_policy: frozenset[str]


def describe(settings: Settings, topic: str, timeout_s: float = _TIMEOUT_S) -> Topic:
    """What the broker says of a topic.

    Raises:
        TopicError: there is no such topic.
        KafkaUnavailableError: no broker answered in time.
    """
    client = admin(settings)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    try:
        asked = client.describe_topics(TopicCollection([topic]), request_timeout=timeout_s)
        found = asked[topic].result(timeout_s)
        config = client.describe_configs([resource], request_timeout=timeout_s)[resource].result(timeout_s)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise _no_topic(settings, topic) from error
        raise _translated(settings, error, timeout_s) from error
    policy = config["cleanup.policy"].value or "delete"
    return Topic(str(found.topic_id), frozenset(part.strip() for part in policy.split(",")))


def log_offsets(settings: Settings, topic: str, timeout_s: float = _TIMEOUT_S) -> dict[int, tuple[int, int]]:
    """First offset still in the log and end offset (exclusive, read committed), by partition.

    Raises:
        TopicError: there is no such topic.
        KafkaUnavailableError: no broker answered in time.
    """
    numbers = partitions(settings, topic, timeout_s)
    client = admin(settings)
    begin = _list_offsets(settings, client, topic, numbers, OffsetSpec.earliest(), timeout_s)
    end = _list_offsets(settings, client, topic, numbers, OffsetSpec.latest(), timeout_s)
    return {number: (begin[number].offset, end[number].offset) for number in numbers}


def offsets_at(settings: Settings, topic: str, time_ms: int, timeout_s: float = _TIMEOUT_S) -> dict[int, int]:
    """Offset of the first record whose timestamp is `time_ms` or later, by partition; the end where there is none.

    Timestamps need not grow along a log: records after the offset may be older, and records before it are not newer
    only up to the broker's index. Widen the range by what may be out of order.

    Raises:
        TopicError: there is no such topic.
        KafkaUnavailableError: no broker answered in time.
    """
    ends = log_offsets(settings, topic, timeout_s)
    spec = OffsetSpec.for_timestamp(time_ms)
    found = _list_offsets(settings, admin(settings), topic, list(ends), spec, timeout_s)
    return {number: found[number].offset if found[number].offset >= 0 else end for number, (_, end) in ends.items()}


def producer(settings: Settings, overrides: Mapping[str, Any] | None = None) -> Producer:
    """An idempotent producer: an acknowledged record is in the log once, in the order of producing per partition.

    Keys go to the partition that Java clients choose for them.
    """
    return Producer(
        {
            "bootstrap.servers": settings.bootstrap,
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",  # librdkafka's own default differs from every Java client's
            "linger.ms": 10,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
            "delivery.timeout.ms": 120_000,
            "log_level": 2,
            **(overrides or {}),
        }
    )


def consumer(settings: Settings, group: str = "lockstep", overrides: Mapping[str, Any] | None = None) -> Consumer:
    """A consumer of committed records that commits no offsets itself: assign it, or store positions yourself.

    An offset that is no longer in the log is an error, never a silent jump.
    """
    return Consumer(
        {
            "bootstrap.servers": settings.bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 50,  # an idle partition answers soon, so a live reader is fresh
            "queued.max.messages.kbytes": 65_536,
            # By default a partition whose queue was full is left alone for a second: 95,000 records a second at most.
            "fetch.queue.backoff.ms": 5,
            "log_level": 2,
            **(overrides or {}),
        }
    )


def produce_all(
    client: Producer, topic: str, records: Iterable[Mapping[str, Any]], on_error: Callable[[str], None] | None = None
) -> int:
    """Produce records and wait until all are acknowledged; return how many were.

    Args:
        client: from `producer`.
        topic: where to.
        records: arguments of `Producer.produce` per record: value, key, timestamp (ms), headers, partition.
        on_error: told the reason of each record that was not acknowledged; None raises the first reason at the end.

    Raises:
        KafkaException: a record was not acknowledged and `on_error` is None.
    """
    failed: list[KafkaError] = []
    sent = 0

    def acknowledged(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    for record in records:
        while True:
            try:
                client.produce(topic, on_delivery=acknowledged, **record)
                break
            except BufferError:  # the local queue is full: let it drain
                client.poll(0.1)
        sent += 1
        client.poll(0)
    client.flush()
    for error in failed:
        if on_error is None:
            raise KafkaException(error)
        on_error(error.str())
    return sent - len(failed)


def _no_topic(settings: Settings, topic: str) -> TopicError:
    return TopicError(
        f"topic `{topic}` does not exist at {settings.bootstrap}. produce to it first, as `lockstep ingest` does"
    )


def _partition_counts(settings: Settings, client: AdminClient, timeout_s: float) -> dict[str, int]:
    try:
        topics = client.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise _translated(settings, error, timeout_s) from error
    return {name: len(topic.partitions) for name, topic in topics.items() if topic.error is None}


def _list_offsets(
    settings: Settings, client: AdminClient, topic: str, numbers: list[int], spec: OffsetSpec, timeout_s: float
) -> dict[int, ListOffsetsResultInfo]:
    wanted = {TopicPartition(topic, number): spec for number in numbers}
    isolation = _Isolation.READ_COMMITTED
    futures = client.list_offsets(wanted, isolation_level=isolation, request_timeout=timeout_s)
    try:
        return {place.partition: future.result(timeout_s) for place, future in futures.items()}
    except KafkaException as error:
        raise _translated(settings, error, timeout_s) from error


def _await_leaders(client: AdminClient, topic: str, timeout_s: float) -> None:
    """Poll metadata until every partition of a new topic has a leader."""
    for _ in range(max(1, int(timeout_s * 20))):
        found = client.list_topics(topic, timeout=timeout_s).topics.get(topic)
        parts = found.partitions.values() if found and found.error is None else ()
        if parts and all(part.leader >= 0 and part.error is None for part in parts):
            return
        client.poll(0.05)
    msg = f"topic `{topic}` was created but has no leader after {timeout_s:g} s. read the broker's log"
    raise TopicError(msg)


def _translated(settings: Settings, error: KafkaException, timeout_s: float) -> Exception:
    if error.args[0].code() not in AWAY:
        return error
    way_out = "check `LOCKSTEP_KAFKA_BOOTSTRAP`" if settings.kafka_bootstrap else "start the stack with `lockstep up`"
    return KafkaUnavailableError(
        f"no Kafka broker answered at `{settings.bootstrap}` within {timeout_s:g} s. {way_out}"
    )
