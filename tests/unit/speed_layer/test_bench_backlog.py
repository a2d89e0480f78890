import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from infra.catalog_file import load_catalog
from metrics.catalog import Catalog
from metrics.disposition import COUNTED, DUPLICATE, LATE, PartitionReader
from speed_layer.bench.backlog import SLICE_MS, Body, Sum, body_a, body_b, events, of_events
from speed_layer.bench.systems import HEAVIEST, JOB_A

SHOP = Path(__file__).parents[3] / "orchestration" / "catalogs" / "shop.yaml"
EVENTS = 120_000
JOBS = {"a": (load_catalog(JOB_A), body_a), "b": (load_catalog(SHOP).only(HEAVIEST), body_b)}


@pytest.mark.parametrize(("catalog", "body"), JOBS.values(), ids=list(JOBS))
def test_every_record_is_disposed_of_as_the_backlog_says(catalog: Catalog, body: Body) -> None:
    written = list(events(EVENTS, 4, body))
    found: Counter[str] = Counter()
    for partition in range(4):
        own = [event for event in written if event.partition == partition]
        values, times = [event.value for event in own], [event.timestamp for event in own]
        chunk = PartitionReader(catalog).read(partition, range(len(own)), times, values)
        disposed = dict(chunk.events.select("offset", "disposition").rows())
        disposed |= dict.fromkeys(chunk.dead_letters["offset"].to_list(), "dead_letter")
        assert [disposed[offset] for offset in range(len(own))] == [event.disposition for event in own]
        found.update(disposed.values())
    assert found == of_events("t", EVENTS, 4, body).dispositions
    assert set(found) == {"counted", "duplicate", "late", "dead_letter"}


def test_what_is_expected_is_what_the_records_say() -> None:
    found: dict[tuple[int, str], list[Decimal]] = {}
    for event in events(20_000, 4, body_a):
        if event.disposition in {COUNTED, DUPLICATE, LATE}:
            fields = json.loads(event.value)
            place = (fields["ts"] // SLICE_MS * SLICE_MS, fields["event_type"])
            found.setdefault(place, []).append(Decimal(fields["amount"]))
    expected = {place: Sum(len(amounts), int(sum(amounts) * 100)) for place, amounts in found.items()}
    assert of_events("t", 20_000, 4, body_a).expected(COUNTED, DUPLICATE, LATE) == expected


def test_a_shorter_backlog_is_the_beginning_of_a_longer_one() -> None:
    longer = [event for _, event in zip(range(5_000), events(9_000, 4, body_a), strict=False)]
    assert list(events(5_000, 4, body_a)) == longer


def test_job_b_is_ten_metrics_of_the_shop() -> None:
    catalog, _ = JOBS["b"]
    assert {metric.name for metric in catalog.metrics} == set(HEAVIEST)
    assert len(HEAVIEST) == 10
    assert {"distinct", "quantile", "top"} <= {metric.agg.name for metric in catalog.metrics}
