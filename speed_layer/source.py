"""The source: a loop over each topic partition of the log, as keyed state and a timer.

The key is a topic partition, the state is the place in its log, and each firing of the timer is one turn: read a chunk,
put out its elements, move the place, set the timer again. Beam checkpoints state and timer together with everything
downstream, so after any failure reading goes on from the last checkpoint. The timer holds the partition's watermark,
at where it was when the bundle began: what a bundle puts out while a checkpoint ends it waits in Flink until the next
one begins, and no watermark waits with it. One that ran ahead would have history judged without the chunk behind it.

This is a splittable DoFn that gives its rest back after each chunk, spelt out. The real one leaves a state cell behind
for each rest on Flink (beam#27648, fixed after runner 2.62), so that its checkpoints grow with every turn: after six
minutes at the head of four partitions they took 13 MB and 6 s each. Those of this loop stay as they are.
"""

import gc
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.fold import Group, groups
from speed_layer import partials
from speed_layer.alert_elements import alert_payloads
from speed_layer.log import PartitionLog, Records, begin_of, followed_watermark, partition_log
from speed_layer.partials import Element, Receipt
from speed_layer.side_outputs import SideOutputs
from speed_layer.spread import leading

_BEAT_EVERY_S = 5.0

logger = logging.getLogger(__name__)


class Place(msgspec.Struct, array_like=True):
    """Where a job stands in a topic partition.

    Attributes:
        origin: First offset of this job.
        next_offset: Offset to read next.
        watermark: The partition's watermark there, in ms; None before its first record.
    """

    origin: int
    next_offset: int
    watermark: int | None


_PLACE = msgspec.msgpack.Decoder(Place)


def buckets(settings: Settings) -> int:
    """Into how many elements the rows of a slice may be dealt: one for each subtask."""
    return settings.parallelism


class ReadPartitions(beam.DoFn):
    """Reads topic partitions, chunk by chunk, and puts out their elements.

    Takes pairs of a key and the number of a topic partition, each once. Dead letters, late events and exceptions are in
    their places before any element of the chunk is put out.
    """

    PLACE = ReadModifyWriteStateSpec("place", BytesCoder())
    PARTITION = ReadModifyWriteStateSpec("partition", BytesCoder())
    TURN = TimerSpec("turn", TimeDomain.REAL_TIME)

    def __init__(self, job: str, settings: Settings, catalog: Catalog, published: dict[int, int]) -> None:
        self._job = job
        self._settings = settings
        self._catalog = catalog
        self._published = published
        self._groups: tuple[Group, ...] = ()
        self._side_outputs: SideOutputs | None = None
        self._buckets = buckets(settings)
        self._at_begin: dict[int, int | None] = {}

    def setup(self) -> None:
        """Prepares what does not travel with the pipeline."""
        self._groups = groups(self._catalog)
        self._side_outputs = SideOutputs(self._settings, self._catalog, self._published)

    def start_bundle(self) -> None:
        """All that former bundles put out is on its way."""
        self._at_begin = {}

    def process(
        self,
        element: tuple[str, int],
        place: Any = beam.DoFn.StateParam(PLACE),  # noqa: ANN401, B008
        partition: Any = beam.DoFn.StateParam(PARTITION),  # noqa: ANN401, B008
        turn: Any = beam.DoFn.TimerParam(TURN),  # noqa: ANN401, B008
    ) -> Iterable[TimestampedValue]:
        """Begins a topic partition at the first offset that the log still has."""
        if place.read() is not None:
            return
        begin = begin_of(self._settings, self._catalog, element[1])
        place.write(msgspec.msgpack.encode(Place(begin, begin, None)))
        partition.write(str(element[1]).encode())
        _again(turn, 0.0, None)
        yield TimestampedValue(partials.beat(Receipt(element[1], begin, begin, begin, 0, None)), MIN_TIMESTAMP)

    @on_timer(TURN)
    def on_turn(
        self,
        place: Any = beam.DoFn.StateParam(PLACE),  # noqa: ANN401, B008
        partition: Any = beam.DoFn.StateParam(PARTITION),  # noqa: ANN401, B008
        turn: Any = beam.DoFn.TimerParam(TURN),  # noqa: ANN401, B008
    ) -> Iterable[TimestampedValue]:
        """One turn."""
        now = _PLACE.decode(place.read())
        number = int(partition.read())
        log = partition_log(self._job, self._settings, self._catalog, number)
        held = self._at_begin.setdefault(number, now.watermark)
        with log.lock, _collector_paused():
            try:
                moment = _moment(now.watermark)
                for key, value in self._turn(log, now):
                    led = leading(key, int(key.rpartition("|")[2]), self._settings.parallelism)
                    yield TimestampedValue((led, value), moment)
            except BaseException:
                log.forget()
                raise
        place.write(msgspec.msgpack.encode(now))
        _again(turn, log.rest_s, held)

    def _turn(self, log: PartitionLog, now: Place) -> Iterator[Element]:
        """Reads a chunk and moves the place behind it."""
        log.seek(now.next_offset)
        records = log.next()
        before = now.watermark
        marks = [before, log.watermark]
        if records.at_head and not records.offsets:
            marks.append(followed_watermark(self._settings, self._catalog))
        now.watermark = max((mark for mark in marks if mark is not None), default=None)
        now.next_offset = records.end
        receipt = Receipt(log.topic_partition, now.origin, records.start, records.end, 0, now.watermark)
        if records.offsets:
            yield from self._chunk(log, records, receipt, before)
        elif records.end > records.start or log.beaten != now.watermark or time.monotonic() >= log.beat_again:
            log.beaten, log.beat_again = now.watermark, time.monotonic() + _BEAT_EVERY_S
            yield partials.beat(receipt)

    def _chunk(self, log: PartitionLog, records: Records, receipt: Receipt, reached: int | None) -> list[Element]:
        begun = time.monotonic()
        if log.lookups:
            log.lookups.begin(records.start, records.end)
        chunk = log.reader.read(receipt.topic_partition, records.offsets, records.times, records.values)
        assert self._side_outputs is not None
        self._side_outputs.publish(chunk, records)
        watched = alert_payloads(self._catalog, chunk.counted, self._buckets)
        elements = partials.elements(chunk, self._groups, self._buckets, receipt, reached, watched)
        log.work_s = time.monotonic() - begun
        return elements


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keeps the cycle collector from walking a chunk's many objects, none of them in a cycle, again and again.

    It took a quarter of the time of a turn.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _moment(watermark: int | None) -> Timestamp:
    return MIN_TIMESTAMP if watermark is None else Timestamp(micros=watermark * 1000)


def _again(turn: Any, rest_s: float, watermark: int | None) -> None:  # noqa: ANN401
    """Sets the timer to fire after a rest and to hold the watermark until then.

    Beam holds it at the time of what is being processed; the SDK has no public way yet to say another one.
    """
    turn._input_timestamp = _moment(watermark)
    turn.set(Timestamp.now() + Duration(seconds=rest_s))
