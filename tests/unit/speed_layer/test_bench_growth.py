import json
from pathlib import Path

import pytest
from merge_harness import Job

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog
from metrics.fold import groups
from speed_layer.bench import growth
from speed_layer.bench.growth import KEYS, PARTITIONS, cases, events_of
from speed_layer.bench.state_bound import Shape, state_bound

BUCKETS = 2


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(Path(growth.__file__).with_name("growth.yaml"))


def test_each_number_of_keys_and_of_partitions_is_measured_once_with_an_event_for_each_key_at_least() -> None:
    found = cases(2_000_000, KEYS, PARTITIONS)

    assert {shape.keys for shape in found} == set(KEYS)
    assert {shape.partitions for shape in found} == set(PARTITIONS)
    assert len({(shape.keys, shape.partitions) for shape in found}) == len(found) == 6
    assert all(shape.events >= shape.keys for shape in found)


@pytest.mark.parametrize(("events", "keys"), [(1000, 10), (1000, 100), (1000, 1000), (990, 37)])
def test_a_slice_has_the_rows_that_are_said(events: int, keys: int) -> None:
    shape = Shape(events, keys, slices=10, partitions=4)

    bodies = [json.loads(value) for _, value in events_of(shape)]

    assert len({(body["ts"] // 60_000, body["device"]) for body in bodies}) == shape.rows
    assert len({body["event_id"] for body in bodies}) == events
    assert all(len(body["device"]) <= 12 for body in bodies)


@pytest.mark.parametrize("keys", [10, 100, 500, 6000])
def test_the_merge_never_holds_more_than_the_closed_form_says_and_at_times_half_of_it(
    catalog: Catalog, keys: int
) -> None:
    shape = Shape(6000, keys, slices=10, partitions=1, chunk=100)
    bound = state_bound(shape, groups(catalog)[0], BUCKETS)
    job = Job(catalog, BUCKETS)
    held = []

    events = [json.loads(value) for _, value in events_of(shape)]
    for first in range(0, shape.events, shape.chunk):
        job.bundle(events[first : first + shape.chunk])
        held.append(sum(len(batch) for cell in job.cells.values() for batch in cell.batches.items))

    assert bound / 2 <= max(held) <= bound
