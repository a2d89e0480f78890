"""What reaches an alert's topic when not all of it does at once."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException

from infra import kafka
from infra.settings import Settings
from metrics.catalog_build import parse_catalog
from speed_layer import alert_sink
from speed_layer.alert_sink import AlertSink
from speed_layer.side_outputs import LARGEST_BYTES

CATALOG = parse_catalog(
    {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "fields": {"user": "string"},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
    },
    {},
    "test",
)


class Topic:
    """A topic that takes messages of up to 100 bytes, and now and then loses some of those sent at once.

    Attributes:
        keys: Of its messages.
        lost: Keys that fail when they are sent first.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.lost: set[str] = set()

    def produce_all(self, _: object, name: str, records: Iterable[Mapping[str, Any]]) -> int:
        failed = []
        for record in records:
            if len(record["value"]) > 100:
                failed.append(KafkaError.MSG_SIZE_TOO_LARGE)
            elif record["key"] in self.lost:
                self.lost.remove(record["key"])
                failed.append(KafkaError._MSG_TIMED_OUT)
            else:
                self.keys.append(record["key"])
        if failed:
            raise KafkaException(KafkaError(failed[0]))
        return len(self.keys)


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    topic = Topic()
    monkeypatch.setattr(kafka, "producer", Mock())
    monkeypatch.setattr(kafka, "produce_all", topic.produce_all)
    monkeypatch.setattr(alert_sink, "last_keys", lambda *_: list(topic.keys))
    monkeypatch.setattr(alert_sink, "_RETRY_S", 0)
    return topic


@pytest.fixture
def produce() -> Callable[[list[dict[str, Any]]], None]:
    sink = AlertSink(Settings(), CATALOG)
    return lambda records: sink._produce("alerts", records)


def records(*keys: str, size: int = 10) -> list[dict[str, Any]]:
    return [{"key": key, "value": b"x" * size} for key in keys]


def test_what_was_sent_beside_a_message_that_failed_is_not_sent_again(
    topic: Topic, produce: Callable[[list[dict[str, Any]]], None]
) -> None:
    topic.lost = {"b", "c"}

    produce(records("a", "b", "c", "d"))

    assert sorted(topic.keys) == ["a", "b", "c", "d"]


def test_a_message_that_its_topic_does_not_take_holds_up_no_other(
    topic: Topic, produce: Callable[[list[dict[str, Any]]], None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        produce([*records("a", "b"), *records("large", "larger", size=101), *records("c")])

    assert sorted(topic.keys) == ["a", "b", "c"]
    assert [record.message for record in caplog.records] == [
        f"alert `{key}` is in the table only: topic `alerts` must take messages of 101 bytes and does not. "
        "raise its `max.message.bytes`"
        for key in ("large", "larger")
    ]


def test_what_was_sent_before_is_known_as_far_back_as_a_successor_looks(
    topic: Topic, produce: Callable[[list[dict[str, Any]]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_sink, "_REMEMBERED", 3)
    produce(records("a", "b"))
    produce(records("c", "d"))

    produce(records("b", "c", "d"))
    assert topic.keys == ["a", "b", "c", "d"]
    produce(records("a"))
    assert topic.keys == ["a", "b", "c", "d", "a"]


def test_the_producer_takes_what_the_topics_take() -> None:
    assert alert_sink._PRODUCER["message.max.bytes"] == LARGEST_BYTES
