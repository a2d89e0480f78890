"""The log as plain Python reads it: every record of a range of offsets of one topic partition, in order.

What is committed is read and nothing else; an offset that is gone is an error, never a smaller number of records.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from batch_layer.refusals import ExpiredError
from infra import kafka
from infra.settings import Settings
from metrics.origin import origin_in

Header = tuple[str, bytes | None]

_COLUMNS = ("offsets", "times", "keys", "values", "headers")
_AT_ONCE = 20_000
_SILENCE_S = 60.0
_WAIT_S = 0.5


@dataclass
class Records:
    """Records of one topic partition, in offset order; `times` are record timestamps in ms."""

    offsets: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[list[Header] | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, messages: list[Message]) -> None:
        """Appends messages."""
        self.offsets += [m.offset() for m in messages]
        self.times += [m.timestamp()[1] for m in messages]
        self.keys += [m.key() for m in messages]
        self.values += [m.value() for m in messages]
        self.headers += [m.headers() for m in messages]

    def origins(self, topic: str, topic_partition: int) -> dict[int, int]:
        """By offset of a record, that of the dead letter which it repairs."""
        if not any(self.headers):
            return {}
        named = zip(self.offsets, self.headers, strict=True)
        found = {at: origin_in(headers, topic, topic_partition, at) for at, headers in named if headers}
        return {offset: origin for offset, origin in found.items() if origin is not None}

    def extend(self, others: "Records") -> None:
        """Appends other records."""
        for name in _COLUMNS:
            getattr(self, name).extend(getattr(others, name))

    def split(self, offset: int) -> tuple["Records", "Records"]:
        """Those before an offset, and the others."""
        place = bisect_left(self.offsets, offset)
        before, after = (
            {name: getattr(self, name)[cut] for name in _COLUMNS} for cut in (slice(place), slice(place, None))
        )
        return Records(**before), Records(**after)


def in_blocks(read: Iterable[Records], begin: int, end: int, step: int) -> Iterator[tuple[tuple[int, int], Records]]:
    """Records of offsets ``[begin, end)`` in runs that end at multiples of `step`, in whatever runs they come.

    So what is computed run by run comes out the same each time, sums of floats as well.

    Yields:
        The offsets of a run, exclusive, which follow on those of the last; and its records, of which there may be none.
    """
    held = Records()
    for more in read:
        held.extend(more)
        while held and (edge := (begin // step + 1) * step) <= held.offsets[-1]:
            done, held = held.split(edge)
            yield (begin, edge), done
            begin = edge
    yield (begin, end), held


def read(settings: Settings, topic: str, topic_partition: int, start: int, end: int) -> Iterator[Records]:
    """The committed records of offsets ``[start, end)``, as they come.

    Raises:
        ExpiredError: The log no longer has the next offset.
        KafkaUnavailableError: For a minute nothing came.
        KafkaException: The broker refused.
    """
    if start >= end:
        return
    client = kafka.consumer(settings, "lockstep-batch", {"enable.partition.eof": True, "fetch.min.bytes": 64 << 10})
    try:
        client.assign([TopicPartition(topic, topic_partition, start)])
        yield from _until(client, settings, TopicPartition(topic, topic_partition, start), end)
    finally:
        client.close()


def _until(client: Consumer, settings: Settings, place: TopicPartition, end: int) -> Iterator[Records]:
    silent_s, reached = 0.0, place.offset
    while reached < end:
        # asked for more than there is, the client would wait for it in vain
        messages = client.consume(min(_AT_ONCE, end - reached), _WAIT_S)
        silent_s = 0.0 if messages else silent_s + _WAIT_S
        if silent_s >= _SILENCE_S:
            msg = f"no Kafka broker answered at `{settings.bootstrap}` within {_SILENCE_S:g} s. start it, and run again"
            raise kafka.KafkaUnavailableError(msg)
        held = Records()
        good = [m for m in messages if m.error() is None]
        held.add([m for m in good if m.offset() < end])
        if held.offsets:
            reached = held.offsets[-1] + 1
        if len(held) < len(good):
            reached = end
        for message in messages:
            if (error := message.error()) is not None:
                reached = max(reached, _after(error, message, place, reached))
        if held.offsets:
            yield held


def _after(error: KafkaError, message: Message, place: TopicPartition, reached: int) -> int:
    """Where an error leaves the reader.

    Raises:
        ExpiredError: The log no longer has the next offset.
        KafkaException: The broker refused.
    """
    code = error.code()
    if code == KafkaError._PARTITION_EOF:
        # what lies between the last record and the end are transaction markers
        return int(message.offset())
    if code in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
        msg = (
            f"offset {reached} of topic `{place.topic}`, partition {place.partition} expired while it was read. "
            "lengthen the topic's retention, and run again"
        )
        raise ExpiredError(msg)
    if error.retriable() or code in kafka.AWAY:
        return reached
    raise KafkaException(error)
