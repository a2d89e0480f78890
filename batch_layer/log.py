"""What a run must know of the log before it reads it: a few look-ups at the broker, and no record is read."""

from collections.abc import Callable
from datetime import UTC, datetime

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, ListOffsetsResultInfo, OffsetSpec

from batch_layer.manifest import LogPartition, LogState
from infra import kafka
from infra.settings import Settings
from metrics.window import to_epoch_ms

ANSWER_WITHIN_S = 30.0


def observe(
    settings: Settings, topic: str, since: int, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> LogState:
    """The topic as it is now, for a run that needs the records sent since then (ms).

    The end of a topic partition is its last stable offset: what a transaction has not committed is not part of the log.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: The broker does not answer.
    """
    described = kafka.describe(settings, topic, ANSWER_WITHIN_S)
    numbers = kafka.partitions(settings, topic, ANSWER_WITHIN_S)
    admin = kafka.admin(settings)
    begins = _list(admin, topic, numbers, OffsetSpec.earliest())
    ends = _list(admin, topic, numbers, OffsetSpec.latest())
    firsts = _list(admin, topic, numbers, OffsetSpec.for_timestamp(0))
    starts = _list(admin, topic, numbers, OffsetSpec.for_timestamp(max(0, since)))
    greatest = _list(admin, topic, numbers, OffsetSpec.max_timestamp())
    return LogState(
        tuple(
            LogPartition(
                topic_partition=number,
                begin=begins[number].offset,
                end=ends[number].offset,
                first_time=firsts[number].timestamp if firsts[number].offset >= 0 else None,
                start=_within(starts[number].offset, ends[number].offset),
            )
            for number in numbers
        ),
        max((found.timestamp for found in greatest.values() if found.offset >= 0), default=None),
        to_epoch_ms(now()),
        described.topic_id,
        "compact" in described.cleanup_policy,
    )


def stops(settings: Settings, topic: str, until: int) -> dict[int, int]:
    """By topic partition, the offset of the first record sent at some time (ms) or later; the end where there is none.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: The broker does not answer.
    """
    return kafka.offsets_at(settings, topic, until, ANSWER_WITHIN_S)


def _within(start: int, end: int) -> int:
    """No record that late is answered by a negative offset: nothing is to be read."""
    return end if start < 0 else min(start, end)


def _list(admin: AdminClient, topic: str, numbers: list[int], spec: OffsetSpec) -> dict[int, ListOffsetsResultInfo]:
    asked = {TopicPartition(topic, number): spec for number in numbers}
    answers = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ANSWER_WITHIN_S)
    return {place.partition: future.result(ANSWER_WITHIN_S) for place, future in answers.items()}
