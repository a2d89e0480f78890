"""What `infra.kafka` promises, against a real broker."""

import pytest

from infra.kafka import (
    KafkaUnavailableError,
    TopicError,
    consumer,
    ensure_topics,
    log_offsets,
    offsets_at,
    partitions,
    produce_all,
    producer,
)
from infra.settings import Settings

START_MS = 1_700_000_000_000


def _fill(settings: Settings, topic: str, count: int) -> None:
    records = ({"value": str(i), "partition": 0, "timestamp": START_MS + i} for i in range(count))
    assert produce_all(producer(settings), topic, records) == count


def test_what_was_produced_is_consumed_in_order_with_its_timestamps(kafka: Settings, unique: str) -> None:
    from confluent_kafka import TopicPartition  # noqa: PLC0415

    assert ensure_topics(kafka, {unique: 1}) == [unique]
    _fill(kafka, unique, 1000)
    reader = consumer(kafka)
    reader.assign([TopicPartition(unique, 0, 0)])
    messages = []
    while len(messages) < 1000:
        messages += reader.consume(1000, timeout=5)
    reader.close()
    assert [int(message.value()) for message in messages] == list(range(1000))
    assert [message.timestamp()[1] for message in messages] == [START_MS + i for i in range(1000)]


def test_topics_are_made_once_and_never_widened(kafka: Settings, unique: str) -> None:
    assert ensure_topics(kafka, {unique: 4}) == [unique]
    assert ensure_topics(kafka, {unique: 2}) == []
    assert partitions(kafka, unique) == [0, 1, 2, 3]
    with pytest.raises(TopicError, match=f"topic `{unique}` must have at least 8 partitions; it has 4. ask for 4"):
        ensure_topics(kafka, {unique: 8})


def test_log_offsets_are_half_open(kafka: Settings, unique: str) -> None:
    ensure_topics(kafka, {unique: 2})
    _fill(kafka, unique, 10)
    assert log_offsets(kafka, unique) == {0: (0, 10), 1: (0, 0)}


def test_a_time_gives_the_first_record_at_or_after_it_and_the_end_when_there_is_none(
    kafka: Settings, unique: str
) -> None:
    ensure_topics(kafka, {unique: 2})
    _fill(kafka, unique, 10)
    assert offsets_at(kafka, unique, START_MS + 4) == {0: 4, 1: 0}
    assert offsets_at(kafka, unique, START_MS + 1000) == {0: 10, 1: 0}


def test_a_missing_topic_is_named(kafka: Settings, unique: str) -> None:
    with pytest.raises(TopicError, match=f"topic `{unique}` does not exist at"):
        log_offsets(kafka, unique)


def test_a_broker_that_is_away_is_named_with_the_way_out(settings: Settings) -> None:
    nobody = settings.model_copy(update={"kafka_bootstrap": "127.0.0.1:1"})
    with pytest.raises(
        KafkaUnavailableError, match=r"no Kafka broker answered at `127.0.0.1:1`.*LOCKSTEP_KAFKA_BOOTSTRAP"
    ):
        log_offsets(nobody, "any", timeout_s=0.5)
