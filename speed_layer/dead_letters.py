"""The dead-letter topic read back: records that were no events, and which of them somebody chose."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from infra import kafka
from infra.settings import Settings
from metrics.catalog import Catalog

Headers = Sequence[tuple[str, bytes]]

_AT_ONCE = 10_000
_TURN_S = 0.2
_SILENT_S = 60.0


class NoDeadLettersError(LookupError):
    """There is no dead-letter topic."""


class Place(NamedTuple):
    """Where a record stands in the topic of events."""

    topic_partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic_partition}:{self.offset}"


@dataclass(frozen=True)
class Letter:
    """A dead letter.

    Attributes:
        place: Where it stands in the topic of events.
        record_time: Its timestamp there, in ms.
        reason: Why it was no event, for machines.
        value: Its bytes.
    """

    place: Place
    record_time: int
    reason: str
    value: bytes | None


@dataclass(frozen=True)
class Choice:
    """Which dead letters are meant; what is empty or None leaves out none.

    Attributes:
        reasons: One of these.
        start: Sent then or later, in ms.
        end: Sent before then, in ms.
        places: One of these.
    """

    reasons: frozenset[str] = frozenset()
    start: int | None = None
    end: int | None = None
    places: frozenset[Place] = frozenset()

    def takes(self, letter: Letter) -> bool:
        """Whether the letter is one of them."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (self.start is None or letter.record_time >= self.start)
            and (self.end is None or letter.record_time < self.end)
            and (not self.places or letter.place in self.places)
        )


def read_letters(settings: Settings, catalog: Catalog, choice: Choice) -> list[Letter]:
    """The chosen dead letters by place; of one that a replay repeated, the latest.

    Raises:
        NoDeadLettersError: The dead-letter topic is missing.
        KafkaUnavailableError: No broker answered in time.
    """
    try:
        offsets = kafka.log_offsets(settings, catalog.dlq_topic)
    except kafka.TopicError as error:
        msg = (
            f"topic `{catalog.dlq_topic}` must hold the dead letters of `{catalog.source}`; it does not exist. the "
            "speed layer makes it: `lockstep up`, or choose another source"
        )
        raise NoDeadLettersError(msg) from error
    begins, ends = ({number: pair[side] for number, pair in offsets.items()} for side in (0, 1))
    found = {}
    for message in messages(settings, catalog.dlq_topic, begins, ends):
        letter = letter_of(message.headers() or (), message.value(), catalog.topic)
        if letter is not None and choice.takes(letter):
            found[letter.place] = letter
    return [found[place] for place in sorted(found)]


def letter_of(headers: Headers, value: bytes | None, topic: str) -> Letter | None:
    """The dead letter in a record; None where it is none of the topic's."""
    place = place_in(headers, topic)
    found = dict(headers)
    try:
        return place and Letter(place, int(found["record_time"]), found["reason"].decode(), value)
    except (KeyError, TypeError, ValueError):
        return None


def place_in(headers: Headers, topic: str, prefix: str = "") -> Place | None:
    """The place of the topic that headers name; None where they name none."""
    found = dict(headers)
    try:
        place = Place(int(found[f"{prefix}partition"]), int(found[f"{prefix}offset"]))
        return place if found[f"{prefix}topic"].decode() == topic else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def messages(settings: Settings, topic: str, starts: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Message]:
    """The committed records of a topic at offsets from `starts` on, before `ends`, by topic partition.

    Raises:
        KafkaException: Some of them have expired meanwhile.
        KafkaUnavailableError: The broker fell silent.
    """
    left = {number for number, start in starts.items() if start < ends[number]}
    consumer = kafka.consumer(settings, "lockstep-repair", {"enable.partition.eof": True})
    heard = time.monotonic()
    try:
        consumer.assign([TopicPartition(topic, number, starts[number]) for number in sorted(left)])
        while left:
            found = consumer.consume(_AT_ONCE, _TURN_S)
            if found:
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENT_S:
                msg = f"no record of topic `{topic}` came within {_SILENT_S:g} s. see `lockstep status`"
                raise kafka.KafkaUnavailableError(msg)
            for message in found:
                number, error = message.partition(), message.error()
                if error is None:
                    if message.offset() < ends[number]:
                        yield message
                    if message.offset() + 1 >= ends[number]:
                        left.discard(number)
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(number)
                elif error.fatal() or error.code() == KafkaError._AUTO_OFFSET_RESET:
                    raise KafkaException(error)
    finally:
        consumer.close()
