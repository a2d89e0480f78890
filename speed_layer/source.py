"""The source: a splittable DoFn over one topic partition of the log, in chunks.

The restriction is a place: where this job began, where to go on, and, once a bundle gave the rest back, where it ended.
Beam checkpoints the rest, so after any failure reading goes on from the last checkpoint, with everything downstream
rolled back to the same moment.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from infra.settings import Settings
from metrics.catalog import Catalog
from metrics.fold import Group, groups
from speed_layer import partials
from speed_layer.log import Records, begin_of, followed_watermark, partition_log
from speed_layer.partials import Element, Receipt
from speed_layer.side_outputs import SideOutputs

Place = tuple[int, int, int | None]
"""(first offset of this job, offset to read next, offset where a finished part ended or None)."""


_BEAT_EVERY_S = 5.0


class PlaceTracker(RestrictionTracker):
    """Claims the log by chunks; gives back all that is not claimed, never a part of it.

    A runner that splits by fraction would cut an endless range in the middle, so only a checkpoint is granted.
    """

    def __init__(self, place: Place) -> None:
        self._origin, self._start, self._stop = place
        self._at = self._start

    def current_restriction(self) -> Place:
        """The place that is being worked on."""
        return (self._origin, self._start, self._stop)

    def current_progress(self) -> RestrictionProgress:
        """Nothing can be said of an endless log."""
        return RestrictionProgress(completed=0, remaining=1)

    def check_done(self) -> None:
        """An endless log is never done; a bundle may end wherever it gave the rest back."""

    def try_split(self, fraction_of_remainder: float) -> tuple[Place, Place] | None:
        """The claimed part and the rest; None unless the whole rest is asked for."""
        if fraction_of_remainder != 0 or self._stop is not None:
            return None
        self._stop = self._at
        return self.current_restriction(), (self._origin, self._at, None)

    def try_claim(self, position: int) -> bool:
        """Whether everything before `position` (exclusive) may be put out by this bundle."""
        if self._stop is not None:
            return False
        self._at = position
        return True

    def is_bounded(self) -> bool:
        """A log has no end."""
        return False


class PlaceProvider(RestrictionProvider):
    """Begins every topic partition at the first offset that the log still has."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog

    def initial_restriction(self, element: int) -> Place:
        """The whole log of a topic partition."""
        begin = begin_of(self._settings, self._catalog, element)
        return (begin, begin, None)

    def create_tracker(self, restriction: Place) -> PlaceTracker:
        """A tracker that stands at the place."""
        return PlaceTracker(restriction)

    def restriction_size(self, element: int, restriction: Place) -> int:  # noqa: ARG002
        """All the same: every partition is endless."""
        return 1

    def truncate(self, element: int, restriction: Place) -> None:  # noqa: ARG002
        """On a drain nothing more is read."""
        return


class WatermarkProvider(WatermarkEstimatorProvider):
    """Watermarks that begin at the beginning of time and go where they are put."""

    def initial_estimator_state(self, element: int, restriction: Place) -> Timestamp:  # noqa: ARG002
        """Nothing is known yet."""
        return MIN_TIMESTAMP

    def create_watermark_estimator(self, estimator_state: Timestamp) -> ManualWatermarkEstimator:
        """An estimator that stands where the last bundle left it."""
        return ManualWatermarkEstimator(estimator_state)


class ReadPartition(beam.DoFn, PlaceProvider):
    """Reads one chunk of a topic partition per turn and puts out its elements.

    Dead letters, late events and exceptions are in their places before any element of the chunk is put out.
    """

    def __init__(self, job: str, settings: Settings, catalog: Catalog, published: dict[int, int]) -> None:
        PlaceProvider.__init__(self, settings, catalog)
        self._job = job
        self._published = published
        self._groups: tuple[Group, ...] = ()
        self._side_outputs: SideOutputs | None = None
        self._buckets = 2 * settings.parallelism

    def setup(self) -> None:
        """Prepares what does not travel with the pipeline."""
        self._groups = groups(self._catalog)
        self._side_outputs = SideOutputs(self._settings, self._catalog, self._published)

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: ANN401, B008
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(WatermarkProvider()),  # noqa: ANN401, B008
    ) -> Iterable[TimestampedValue]:
        """One turn; the rest of the log is given back at its end."""
        log = partition_log(self._job, self._settings, self._catalog, element)
        origin, start, _ = tracker.current_restriction()
        with log.lock:
            log.seek(start)
            records = log.next()
            if not tracker.try_claim(records.end):
                log.forget()
                return
            watermark, now = log.watermark, time.monotonic()
            if records.at_head and not records.offsets:
                followed = followed_watermark(self._settings, self._catalog)
                watermark = max((w for w in (watermark, followed) if w is not None), default=None)
            receipt = Receipt(element, origin, records.start, records.end, 0, watermark)
            try:
                for item in self._turn(
                    log.reader, records, receipt, beaten=log.beaten == watermark and now < log.beat_again
                ):
                    yield TimestampedValue(item, estimator.current_watermark())
            except BaseException:
                log.forget()
                raise
            if log.beaten != watermark or now >= log.beat_again:
                log.beaten, log.beat_again = watermark, now + _BEAT_EVERY_S
        if watermark is not None:
            reached = Timestamp(micros=watermark * 1000)
            if reached > estimator.current_watermark():
                estimator.set_watermark(reached)
        tracker.defer_remainder()

    def _turn(self, reader: Any, records: Records, receipt: Receipt, *, beaten: bool) -> Iterator[Element]:  # noqa: ANN401
        if records.offsets:
            chunk = reader.read(receipt.topic_partition, records.offsets, records.times, records.values)
            assert self._side_outputs is not None
            self._side_outputs.publish(chunk, records)
            yield from partials.elements(chunk, self._groups, self._buckets, receipt)
        elif records.end > records.start or not beaten:
            yield partials.beat(receipt)
