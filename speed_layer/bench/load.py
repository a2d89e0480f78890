"""An open-loop load: events are due at fixed times, whatever becomes of them.

Event number n is due at `start + n / rate`, which is its event time and its record's timestamp. A sender that falls
behind sends what is due as fast as it can, and says how far behind it was.
"""

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Producer

from infra import kafka
from infra.settings import Settings

TYPES = ("page_view", "click", "cart", "purchase", "pay")
COUNTRIES = ("de", "fr", "gb", "it", "us", "es")
USERS = 1_000_000
"""Users take turns, so that at 20,000 events/s none has more than three events in two minutes: an alert's threshold."""

_TICK_S = 0.005
_LINGER_MS = 20
"""Probes are sent at once, by a producer of their own."""

_TAILS = [
    f'"event_type":"{TYPES[n % 5]}","country":"{COUNTRIES[n % 6]}","page":"/products/{n}","amount":"{n % 100}.50"}}'
    for n in range(1000)
]


@dataclass(frozen=True)
class Sent:
    """What a load has sent.

    Attributes:
        events: How many are in the log.
        behind_s: The longest time from when an event was due to when it was handed to the producer.
        seconds: From the first event's time to the last's.
    """

    events: int
    behind_s: float
    seconds: float


class Load:
    """Sends events from entering until `stop`, in a process of its own.

    Args:
        settings: Where Kafka is.
        topic: Where to.
        partitions: Of the topic; they take turns.
        rate: Events per second.
    """

    def __init__(self, settings: Settings, topic: str, partitions: int, rate: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._over = context.Event()
        self._sent, self._sender = context.Pipe(duplex=False)
        arguments = (settings, topic, partitions, rate, self._over, self._sender)
        self._process = context.Process(target=_send, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        """Begins to send."""
        self._process.start()
        self._sender.close()  # so that a process that died is not waited for
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process, stopped or not."""
        self._process.terminate()
        self._process.join()

    def stop(self) -> Sent:
        """Ends sending; returns once all that was sent is acknowledged.

        Raises:
            EOFError: The process has died.
        """
        self._over.set()
        sent: Sent = self._sent.recv()
        return sent


def event(number: int, due_ms: int) -> bytes:
    """The event of a number: about 160 bytes."""
    return (
        f'{{"event_id":"load-{number}","ts":{due_ms},"user_id":"u{number % USERS}",{_TAILS[number % len(_TAILS)]}'
    ).encode()


def _send(settings: Settings, topic: str, partitions: int, rate: int, over: Event, result: Any) -> None:  # noqa: ANN401
    client = kafka.producer(settings, {"linger.ms": _LINGER_MS, "queue.buffering.max.messages": 1_000_000})
    start, number, behind = time.time(), 0, 0.0
    while not over.wait(_TICK_S):
        now = time.time()
        behind = max(behind, now - start - number / rate)
        for due in range(number, int((now - start) * rate) + 1):
            due_ms = round((start + due / rate) * 1000)
            _produce(client, topic, due % partitions, event(due, due_ms), due_ms)
            number = due + 1
        client.poll(0)
    client.flush()
    result.send(Sent(number, behind, number / rate))


def _produce(client: Producer, topic: str, partition: int, value: bytes, due_ms: int) -> None:
    while True:
        try:
            client.produce(topic, value=value, partition=partition, timestamp=due_ms)
            return
        except BufferError:  # the broker is slower than the load: events stay due
            client.poll(0.01)
