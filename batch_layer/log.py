"""What a run must know of the log before it reads it: a few look-ups at the broker, and no record is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, ListOffsetsResultInfo, OffsetSpec

from batch_layer.archive import ArchivedStretch, reach
from batch_layer.manifest import LogPartition, LogState, Plan
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


def with_archive(state: LogState, copied: Mapping[int, Sequence[ArchivedStretch]], since: int) -> LogState:
    """The topic with what its archive holds from before the log begins.

    Args:
        state: From `observe`.
        copied: By topic partition, what the archive holds.
        since: As it was observed for, in ms.
    """
    return replace(
        state, partitions=tuple(_reaching(p, copied.get(p.topic_partition, ()), since) for p in state.partitions)
    )


def _reaching(found: LogPartition, copied: Sequence[ArchivedStretch], since: int) -> LogPartition:
    archived = tuple(reach(copied, found.begin))
    if not archived:
        return found
    times = (one.first_time for one in archived if one.first_time is not None)
    holding = (one.begin for one in archived if one.greatest_time is not None and one.greatest_time >= since)
    return replace(
        found,
        begin=archived[0].begin,
        first_time=next(times, found.first_time),
        start=next(holding, found.start),
        archived=archived,
        log_begin=found.begin,
    )


def stops(settings: Settings, topic: str, planned: Plan, until: int) -> dict[int, int]:
    """By topic partition, an offset from which on every record was sent at some time (ms) or later, if times grow.

    It is the end where there is none, and within the archive the end of a stretch.

    Raises:
        TopicError: There is no such topic.
        KafkaUnavailableError: The broker does not answer.
    """
    found = kafka.offsets_at(settings, topic, until, ANSWER_WITHIN_S)
    for number, stretches in planned.archived.items():
        reached = (one.end for one in stretches if one.greatest_time is not None and one.greatest_time >= until)
        found[number] = min(found[number], next(reached, found[number]))
    return found


def _within(start: int, end: int) -> int:
    """No record that late is answered by a negative offset: nothing is to be read."""
    return end if start < 0 else min(start, end)


def _list(admin: AdminClient, topic: str, numbers: list[int], spec: OffsetSpec) -> dict[int, ListOffsetsResultInfo]:
    asked = {TopicPartition(topic, number): spec for number in numbers}
    answers = admin.list_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ANSWER_WITHIN_S)
    return {place.partition: future.result(ANSWER_WITHIN_S) for place, future in answers.items()}
