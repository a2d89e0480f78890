"""The decode ceiling: what one Python process per core consumes, decodes and groups, with no engine around it.

It keeps no state, writes nothing and looks for no copies, late events or dead letters beyond a missing type: no system
that reads its log in Python on these cores can be faster.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import Any

import polars as pl
from confluent_kafka import TopicPartition

from infra import kafka
from infra.measure import Meter, of_services
from infra.settings import Settings
from metrics.disposition import COUNTED, DUPLICATE, LATE
from speed_layer.bench.backlog import SLICE_MS, Backlog, Sum
from speed_layer.bench.run import BenchError, Run, Stretch

_STEP = 20_000
_CHUNK = 200_000
"""Lines that are decoded at once: fewer are slower, more are no faster."""

_WAIT_S = 30.0
_SCHEMA = {
    "event_id": pl.String,
    "ts": pl.Int64,
    "event_type": pl.String,
    "user_id": pl.String,
    "country": pl.String,
    "page": pl.String,
    "amount": pl.String,
}


def ceiling(settings: Settings, backlog: Backlog) -> Run:
    """Reads the backlog once. The processes are up, and their consumers connected, before the clock runs.

    Raises:
        BenchError: A process failed, or Kafka gave nothing for half a minute.
    """
    started = time.monotonic()
    ends = {number: end for number, (_, end) in kafka.log_offsets(settings, backlog.topic).items()}
    cores = os.cpu_count() or 1
    # A forked process would share a Kafka client that it does not have the threads of.
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(cores + 1), context.Queue()
    shares = [{number: end for number, end in ends.items() if number % cores == own} for own in range(cores)]
    os.environ["POLARS_MAX_THREADS"] = "1"  # of the readers, which share the cores by being many
    readers = [
        context.Process(target=_read, args=(settings, backlog.topic, share, ready, results), daemon=True)
        for share in shares
    ]
    for reader in readers:
        reader.start()
    parts = {"system": [reader.pid for reader in readers if reader.pid], "broker": of_services(settings, ("kafka",))}
    with Meter(parts) as meter:
        ready.wait(_WAIT_S)
        begun, before = time.monotonic(), meter.cpu()
        tables = [results.get(timeout=10 * _WAIT_S) for _ in readers]
        seconds = time.monotonic() - begun
        after = meter.cpu()
        ready.wait(_WAIT_S)  # until then they live, so that their time can be asked for
    for reader in readers:
        reader.join()
    if any(isinstance(table, str) for table in tables):
        raise BenchError("\n".join(table for table in tables if isinstance(table, str)))
    found: dict[Any, Sum] = {}
    for start, kind, events, cents in (row for table in tables for row in table):
        so_far = found.get((start, kind), Sum(0, 0))
        found[start, kind] = Sum(so_far.events + events, so_far.cents + cents)
    exact = found == backlog.expected(COUNTED, DUPLICATE, LATE)
    stretch = Stretch(backlog.events, seconds, {part: after[part] - before[part] for part in parts})
    return Run(stretch, time.monotonic() - started, meter.peaks(), exact)


def _read(settings: Settings, topic: str, ends: dict[int, int], ready: Barrier, results: Any) -> None:  # noqa: ANN401
    """One process: reads its partitions to their ends and gives a row per slice and type, or the text of an error."""
    consumer = kafka.consumer(settings, f"bench-{os.getpid()}", {"auto.offset.reset": "earliest"})
    consumer.list_topics(topic, timeout=_WAIT_S)
    ready.wait(_WAIT_S)
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in ends])
        states = [fold(chunk) for chunk in _chunks(consumer, sum(ends.values()))]
        merged = pl.concat(states).group_by("slice", "event_type").sum() if states else pl.DataFrame()
        results.put(merged.rows())
    except Exception as error:  # noqa: BLE001 - told to who waits for the rows
        results.put(f"{type(error).__name__}: {error}")
    ready.wait(10 * _WAIT_S)


def _chunks(consumer: Any, records: int) -> Iterator[list[bytes]]:  # noqa: ANN401
    values: list[bytes] = []
    while records:
        messages = consumer.consume(_STEP, _WAIT_S if not values else 1.0)
        if not messages:
            msg = f"Kafka gave nothing for {_WAIT_S:g} s; {records:,} records are left"
            raise TimeoutError(msg)
        values += [message.value() for message in messages]
        records -= len(messages)
        if len(values) >= _CHUNK:
            yield values
            values = []
    if values:
        yield values


def fold(values: list[bytes]) -> pl.DataFrame:
    """Events and the sum of their amounts in hundredths, by slice and event type; those without a type are left out."""
    frame = pl.read_ndjson(b"\n".join(values), schema=_SCHEMA)
    return (
        frame.filter(pl.col("event_type").is_not_null())
        .group_by(slice=pl.col("ts") // SLICE_MS * SLICE_MS, event_type="event_type")
        .agg(events=pl.len(), cents=(pl.col("amount").cast(pl.Decimal(18, 2)).sum() * 100).cast(pl.Int64))
    )
