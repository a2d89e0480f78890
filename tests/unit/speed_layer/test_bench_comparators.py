"""What the comparators compute, on the events that the bench gives them."""

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that

from metrics.disposition import COUNTED, DUPLICATE, LATE
from speed_layer.bench.backlog import Place, Sum, body_a, events, of_events
from speed_layer.bench.ceiling import fold
from speed_layer.bench.per_element import CountEvents

EVENTS = 12_000
TOO_LATE_MS = 3_610_000
BACKLOG = of_events("t", EVENTS, 4, body_a)


class Places(beam.DoFn):
    """Gives each sum its place."""

    def process(self, element, window=beam.DoFn.WindowParam):
        kind, (number, cents) = element
        yield (window.start.micros // 1000, kind), Sum(number, cents)


@pytest.mark.parametrize("dedup", [True, False])
def test_the_job_per_element_counts_what_is_to_be_counted(dedup: bool) -> None:
    expected = BACKLOG.expected(*([COUNTED] if dedup else [COUNTED, DUPLICATE]))
    assert BACKLOG.expected() != BACKLOG.expected(COUNTED, DUPLICATE)

    def check(found: list[tuple[Place, Sum]]) -> None:
        assert len(found) == len(expected)
        assert dict(found) == expected

    records = [(event.timestamp, event.value) for event in events(EVENTS, 4, body_a)]
    with beam.Pipeline("DirectRunner") as pipeline:
        counted = pipeline | beam.Create(records) | CountEvents(TOO_LATE_MS, dedup=dedup) | beam.ParDo(Places())
        assert_that(counted, check)


def test_the_ceiling_counts_all_that_has_a_type() -> None:
    frame = fold([event.value for event in events(EVENTS, 4, body_a)])
    found = {(start, kind): Sum(number, cents) for start, kind, number, cents in frame.rows()}
    assert found == BACKLOG.expected(COUNTED, DUPLICATE, LATE)
    assert found != BACKLOG.expected()
