"""How long the merge keeps the states of slices."""

import pytest
from merge_harness import Job

from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog

START = 1_700_000_000_000 // 3_600_000 * 3_600_000
MINUTE = 60_000


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    tree = {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "fields": {"user": "string"},
        "metrics": {"events": {"agg": "count", "window": "tumbling 1m"}},
    }
    return parse_catalog(tree, {}, "test")


def test_a_slice_that_the_watermark_has_passed_goes_once_nothing_has_come_for_long(catalog: Catalog) -> None:
    job = Job(catalog)
    job.bundle([{"ts": START}])
    job.advance(START + MINUTE)

    job.lapse()

    assert (job.state_rows, job.memory_rows) == (0, 0)


def test_a_slice_that_awaits_its_on_time_pane_stays_however_long_nothing_comes(catalog: Catalog) -> None:
    job = Job(catalog)
    job.bundle([{"ts": START}])

    job.lapse()
    batch = job.bundle([{"ts": START + 1}])
    job.advance(START + MINUTE)
    job.lapse()

    assert batch.panes["1m"]["events.events"].to_list() == [2]
    assert (job.state_rows, job.memory_rows) == (0, 0)
