"""The comparator in Beam: job A as one writes it in Beam, one element per event, on the same runner and workers.

A loop over each topic partition puts out one element per record; then decode, fixed windows, `GroupByKey`,
`CombinePerKey`, ClickHouse. It is spared what the speed layer does beside: no ledger, no late topic, no dead-letter
topic, no early panes. Copies are dropped within a window, which the runner does by itself; keyed state in Python would
ask the runner about each id. It is so slow that it is given a shorter backlog.
"""

import time
import uuid
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.trigger import AccumulationMode
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, TopicPartition

from infra import kafka
from infra.clickhouse import connect, quote
from infra.measure import Meter, of_services
from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.disposition import COUNTED, DUPLICATE
from metrics.window import milliseconds
from speed_layer import jobs
from speed_layer.bench.backlog import SLICE_MS, Backlog, Sum
from speed_layer.bench.drain import PARTS
from speed_layer.bench.run import BenchError, Run, Stretch
from speed_layer.pipeline import Seeds, options

_TURN_RECORDS = 1_000
_TURN_S = 0.1
_POLL_S = 0.05
_LONGEST_S = 300.0
_OVERTAKEN_S = 3600

_CONSUMERS: dict[tuple[str, int], tuple[Consumer, int]] = {}
"""By job and topic partition a consumer and the offset it stands at: objects of a DoFn come and go."""


class ReadEvents(beam.DoFn):
    """Puts out the records of topic partitions up to an offset, one element each: record time and bytes."""

    OFFSET = ReadModifyWriteStateSpec("offset", VarIntCoder())
    WATERMARK = ReadModifyWriteStateSpec("watermark", VarIntCoder())
    PARTITION = ReadModifyWriteStateSpec("partition", VarIntCoder())
    TURN = TimerSpec("turn", TimeDomain.REAL_TIME)

    def __init__(self, job: str, settings: Settings, catalog: Catalog, end: int) -> None:
        self._job = job
        self._settings = settings
        self._catalog = catalog
        self._end = end
        self._behind_ms = milliseconds(catalog.out_of_orderness)
        self._at_begin: dict[int, Timestamp] = {}

    def start_bundle(self) -> None:
        """All that former bundles put out is on its way."""
        self._at_begin = {}

    def process(
        self,
        element: tuple[str, int],
        partition: Any = beam.DoFn.StateParam(PARTITION),  # noqa: ANN401, B008
        turn: Any = beam.DoFn.TimerParam(TURN),  # noqa: ANN401, B008
    ) -> None:
        """Begins a topic partition, and says so."""
        partition.write(element[1])
        connect(self._settings, self._job).insert("begun", [[element[1]]])
        _again(turn, MIN_TIMESTAMP)

    @on_timer(TURN)
    def on_turn(
        self,
        offset: Any = beam.DoFn.StateParam(OFFSET),  # noqa: ANN401, B008
        watermark: Any = beam.DoFn.StateParam(WATERMARK),  # noqa: ANN401, B008
        partition: Any = beam.DoFn.StateParam(PARTITION),  # noqa: ANN401, B008
        turn: Any = beam.DoFn.TimerParam(TURN),  # noqa: ANN401, B008
    ) -> Iterable[TimestampedValue]:
        """One turn. The one after the end lets go of the watermark, which closes every window."""
        position, number, reached = offset.read() or 0, partition.read(), watermark.read()
        if position >= self._end:
            return
        moment = MIN_TIMESTAMP if reached is None else Timestamp(micros=reached * 1000)
        held = self._at_begin.setdefault(number, moment)
        consumer, stands_at = _CONSUMERS.pop((self._job, number), (None, -1))
        consumer = consumer or kafka.consumer(self._settings, self._job)
        if stands_at != position:
            consumer.assign([TopicPartition(self._catalog.topic, number, position)])
        for message in consumer.consume(_TURN_RECORDS, _TURN_S):
            if message.offset() >= self._end:
                position = self._end
                break
            record_time = message.timestamp()[1]
            yield TimestampedValue((record_time, message.value()), moment)
            position = message.offset() + 1
            reached = max(reached or 0, record_time - self._behind_ms)
        _CONSUMERS[self._job, number] = (consumer, position)
        offset.write(position)
        if reached is not None:
            watermark.write(reached)
        _again(turn, held)


def _again(turn: Any, held: Timestamp) -> None:  # noqa: ANN401
    """Sets the timer to fire at once and to hold the watermark; see `speed_layer.source`."""
    turn._input_timestamp = held
    turn.set(Timestamp.now())


class Event(msgspec.Struct):
    """What job A needs of an event."""

    event_id: str
    ts: int
    event_type: str
    amount: str


class Decode(beam.DoFn):
    """Events that are neither bad nor late, at their time: id, and type with amount in hundredths."""

    def __init__(self, too_late_ms: int) -> None:
        self._too_late_ms = too_late_ms
        self._decode = None

    def setup(self) -> None:
        """Makes the decoder, which does not travel."""
        self._decode = msgspec.json.Decoder(Event).decode

    def process(self, element: tuple[int, bytes]) -> Iterator[TimestampedValue]:
        """Decodes one."""
        try:
            event = self._decode(element[1])  # type: ignore[misc]
        except msgspec.DecodeError:
            return
        if element[0] - event.ts <= self._too_late_ms:
            whole, _, part = event.amount.partition(".")
            pair = (event.event_id.encode(), (event.event_type, int(whole) * 100 + int(part)))
            yield TimestampedValue(pair, Timestamp(micros=event.ts * 1000))


class CountAndSum(beam.CombineFn):
    """Number and sum of integers."""

    def create_accumulator(self) -> tuple[int, int]:
        """Nothing."""
        return 0, 0

    def add_input(self, accumulator: tuple[int, int], element: int) -> tuple[int, int]:
        """One more."""
        return accumulator[0] + 1, accumulator[1] + element

    def merge_accumulators(self, accumulators: Iterable[tuple[int, int]]) -> tuple[int, int]:
        """Adds up; a late pane may have nothing."""
        both = list(accumulators)
        return sum(number for number, _ in both), sum(total for _, total in both)

    def extract_output(self, accumulator: tuple[int, int]) -> tuple[int, int]:
        """As it is."""
        return accumulator


class Write(beam.DoFn):
    """Writes a bundle's windows by one insert."""

    def __init__(self, settings: Settings, database: str) -> None:
        self._settings = settings
        self._database = database
        self._client: Client | None = None
        self._rows: list[list[Any]] = []

    def process(self, element: tuple[str, tuple[int, int]], window: Any = beam.DoFn.WindowParam) -> None:  # noqa: ANN401
        """Takes note of a window."""
        self._rows.append([window.start.micros // 1000, element[0], *element[1]])

    def finish_bundle(self) -> None:
        """Writes what came."""
        if self._rows:
            self._client = self._client or connect(self._settings, self._database)
            self._client.insert("counts", self._rows)
            self._rows = []


def per_element(settings: Settings, catalog: Catalog, backlog: Backlog, *, dedup: bool = True) -> Run:
    """Runs the job over the first `backlog.events` events of the topic, in a database of its own.

    Raises:
        BenchError: It was not done in five minutes.
    """
    database = f"bench_{uuid.uuid4().hex[:8]}"
    meter = Meter({part: of_services(settings, names) for part, names in PARTS.items()})
    client = connect(settings)
    client.command(f"CREATE DATABASE {quote(database)}")
    client = connect(settings, database)
    client.command("CREATE TABLE begun (partition Int32) ENGINE = MergeTree ORDER BY partition")
    columns = "slice_start Int64, event_type String, events UInt64, cents Int64"
    client.command(f"CREATE TABLE counts ({columns}) ENGINE = MergeTree ORDER BY (slice_start, event_type)")
    expected = backlog.expected(*([COUNTED] if dedup else [COUNTED, DUPLICATE]))
    total = sum(one.events for one in expected.values())
    started = time.monotonic()
    job = _submit(settings, catalog, database, backlog.events // catalog.topic_partitions, dedup=dedup)
    try:
        with meter:
            begun, before = _reached(client, "SELECT count() FROM begun", 1), meter.cpu()
            ended, after = _reached(client, "SELECT sum(events) FROM counts", total), meter.cpu()
        sql = "SELECT slice_start, event_type, sum(events), sum(cents) FROM counts GROUP BY slice_start, event_type"
        rows = client.query(sql).result_rows
    finally:
        jobs.cancel(settings, job)
        client.command(f"DROP DATABASE {quote(database)}")
    exact = len(rows) == len(expected) and {(s, kind): Sum(n, cents) for s, kind, n, cents in rows} == expected
    stretch = Stretch(backlog.events, ended - begun, {part: after[part] - before[part] for part in PARTS})
    whole_s = time.monotonic() - started
    return Run(stretch, whole_s, meter.peaks(), exact, {"job_started_in_s": round(begun - started, 2)})


class CountEvents(beam.PTransform):
    """From record times and bytes to number and sum of amounts by event type and window.

    Args:
        too_late_ms: From how long after it happened on an event is late.
        dedup: Whether copies are dropped. A copy has the time of the first, so it lies in the same window.
    """

    def __init__(self, too_late_ms: int, *, dedup: bool) -> None:
        super().__init__()
        self._too_late_ms = too_late_ms
        self._dedup = dedup

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Applies the transform."""
        events = (
            pcoll
            | "Decode" >> beam.ParDo(Decode(self._too_late_ms)).with_output_types(tuple[bytes, tuple[str, int]])
            | "In windows"
            >> beam.WindowInto(
                FixedWindows(SLICE_MS // 1000),
                accumulation_mode=AccumulationMode.DISCARDING,
                # What a checkpoint ends a bundle with, the watermark may overtake on Flink.
                allowed_lateness=_OVERTAKEN_S,
            )
        )
        if self._dedup:
            one = beam.FlatMap(_first).with_output_types(tuple[str, int])
            events = events | "By id" >> beam.GroupByKey() | "One of each id" >> one
        else:
            events |= "Without ids" >> beam.Values().with_output_types(tuple[str, int])
        return events | "Count and sum" >> beam.CombinePerKey(CountAndSum())


def _first(events: tuple[bytes, Iterable[tuple[str, int]]]) -> Iterator[tuple[str, int]]:
    """One of the events of an id; a pane that comes when its window is let go of has none."""
    return islice(events[1], 1)


def _submit(settings: Settings, catalog: Catalog, database: str, end: int, *, dedup: bool) -> str:
    pipeline = beam.Pipeline(options=options(settings, f"per-element-{database}"))
    too_late_ms = milliseconds(catalog.out_of_orderness + catalog.allowed_lateness)
    read = ReadEvents(database, settings, catalog, end)
    _ = (
        pipeline
        | "Topic partitions" >> Seeds(catalog.topic_partitions, settings.parallelism, settings.expansion_endpoint)
        | "Read" >> beam.ParDo(read).with_output_types(tuple[int, bytes])
        | "Count events" >> CountEvents(too_late_ms, dedup=dedup)
        | "Write" >> beam.ParDo(Write(settings, database))
    )
    return str(pipeline.run()._job_id)


def _reached(client: Client, sql: str, number: int) -> float:
    deadline = time.monotonic() + _LONGEST_S
    while time.monotonic() < deadline:
        if int(client.query(sql).result_rows[0][0]) >= number:
            return time.monotonic()
        time.sleep(_POLL_S)
    msg = f"the job per element was not done in {_LONGEST_S:g} s. read the logs under `data_dir`"
    raise BenchError(msg)
