"""Days whose versions are not all known are refused, others are not."""

from datetime import UTC, date, datetime

import polars as pl
import pytest
import yaml

from batch_layer.lookups import LookupHistoryError, Versions, known, refuse_gaps
from batch_layer.manifest import Plan, ReadRange
from batch_layer.refusals import DayRefusedError
from batch_layer.rows import used_fields
from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from metrics.lookup import RECORDS, Known, VersionReader
from metrics.window import to_epoch_ms
from serving.lookup_archive import Gap

TREE = """
source: shop
topic: events.shop.v1
event_id: id
event_time: {field: ts}
key: user
fields: {user: string, amount: int}
lookups: {customers: {topic: customers.v1, key: user, fields: {segment: string, tier: string}}}
metrics: {events: {agg: count, by: [customers_segment], window: tumbling 1m}}
"""
NOON = to_epoch_ms(datetime(2026, 3, 2, 12, tzinfo=UTC))


def catalog(text: str = TREE) -> Catalog:
    return parse_catalog(yaml.safe_load(text), {}, "test")


def test_a_day_that_begins_before_the_history_is_complete_is_refused_with_the_way_out() -> None:
    shop = catalog()
    (lookup,) = shop.lookups
    with pytest.raises(LookupHistoryError) as refused:
        refuse_gaps(shop, lookup, [Gap(0, 3, 7, NOON), Gap(1, 0, 2, NOON - 1)], [date(2026, 3, 2), date(2026, 3, 3)])
    assert isinstance(refused.value, DayRefusedError)
    assert str(refused.value) == (
        "the history of lookup `customers` is complete only from 2026-03-02T12:00:00Z on, and day 2026-03-02 needs it "
        "from 2026-03-02T00:00:00Z: of topic `customers.v1` offsets 3 to 7 of partition 0, offsets 0 to 2 of partition "
        "1 were gone before they were archived. choose days from then on; keep `lockstep speed` running, which "
        "archives versions as they come, or raise the topic's `min.compaction.lag.ms`, before more is lost"
    )
    refuse_gaps(shop, lookup, [Gap(0, 3, 7, NOON)], [date(2026, 3, 3)])
    refuse_gaps(shop, lookup, [], [date(2026, 3, 1)])


def test_a_session_needs_the_history_from_before_its_day() -> None:
    visits = catalog(TREE.replace("tumbling 1m", "session 30m max 2h"))
    with pytest.raises(LookupHistoryError, match="day 2026-03-03 needs it from 2026-03-02T19:30:00Z"):
        refuse_gaps(visits, visits.lookups[0], [Gap(0, 0, 1, NOON + 11 * 3_600_000)], [date(2026, 3, 3)])


def test_rows_have_the_joined_fields_that_metrics_use() -> None:
    shop = catalog()
    assert [field.name for field in used_fields(shop)] == ["customers_segment"]


def test_the_same_events_are_joined_exactly_and_as_they_were_known() -> None:
    shop = catalog()
    records = [(0, 0, 10, b"u", b'{"segment": "new"}'), (0, 1, 20, b"u", b'{"segment": "old"}')]
    read = VersionReader(shop.lookups[0]).read(pl.DataFrame(records, schema=RECORDS, orient="row"))
    then = Known.of([(0, 0, 2, {0: 1}), (0, 5, 6, {0: 0})])
    versions = Versions(shop.lookups, {"customers": read.versions}, {"customers": then}, {"customers": {0: 2}})
    events = pl.DataFrame(
        {"topic_partition": [0] * 4, "offset": [0, 1, 2, 5], "event_time": [15, 25, 25, 25], "f_user": ["u"] * 4},
        schema_overrides={"topic_partition": pl.Int32},
    )
    assert versions.exact(events)["f_customers_segment"].to_list() == ["new", "old", "old", "old"]
    assert versions.expected(events)["f_customers_segment"].to_list() == ["new", "new", "old", None]


def test_a_run_asks_what_was_known_at_the_offsets_that_it_reads_and_no_others() -> None:
    asked: list[dict[str, object]] = []

    class Answer:
        result_rows = ((3, 9, {0: 1}, 70), (5, 12, {0: 2}, 80))

    class Client:
        def query(self, sql: str, parameters: dict[str, object]) -> Answer:
            asked.append(parameters)
            return Answer()

    shop = catalog()
    planned = Plan((date(2026, 3, 2),), (ReadRange(1, 0, 4, 10, 0, 10, 0), ReadRange(2, 5, 6, 8, 0, 8, 0)), None)
    found = known(Client(), shop, shop.lookups[0], planned)  # type: ignore[arg-type]
    assert [(one["number"], one["start"], one["end"]) for one in asked] == [(1, 4, 10), (2, 6, 8)]
    assert found.spans == ((1, 3, 9, {0: 1}), (1, 9, 12, {0: 2}), (2, 3, 9, {0: 1}), (2, 9, 12, {0: 2}))
