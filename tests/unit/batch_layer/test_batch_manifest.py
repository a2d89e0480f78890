"""Which offsets a run reads, and which days it refuses."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from batch_layer.manifest import (
    Indexed,
    LogPartition,
    LogState,
    earliest_record_time,
    fitted,
    lookback_ms,
    plan,
)
from batch_layer.refusals import ExpiredError, LostError, OpenDayError
from infra.catalog_file import load_catalog
from metrics.alert import Alert
from metrics.catalog import Catalog
from metrics.window import parse_window, to_epoch_ms

CATALOG = replace(load_catalog(Path(__file__).parents[2] / "data" / "clickstream.yaml"), dedup_horizon=100)
DAY = date(2024, 1, 5)


def at(text: str) -> int:
    return to_epoch_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


CLOSED = at("2024-01-06T01:00:10")


def partition(number: int = 0, **changes: int | None) -> LogPartition:
    found = LogPartition(number, begin=0, end=1000, first_time=at("2024-01-04T00:00:00"), start=400)
    return replace(found, **changes)


def test_a_run_reads_from_the_first_record_that_may_hold_an_event_of_its_days_to_the_end_of_the_log():
    planned = plan(CATALOG, [DAY], LogState((partition(),), CLOSED))
    assert [(r.remember_from, r.start, r.end) for r in planned.ranges] == [(300, 400, 1000)]
    assert earliest_record_time(CATALOG, [DAY]) == at("2024-01-04T23:55:00")


def test_the_horizon_is_remembered_no_further_back_than_the_log_reaches():
    planned = plan(CATALOG, [DAY], LogState((partition(begin=350),), CLOSED))
    assert planned.ranges[0].remember_from == 350


def fit(stop: int = 1000, extent: tuple[int, int] | None = None, **changes: int | None) -> list[tuple[int, int, int]]:
    planned = plan(CATALOG, [DAY], LogState((partition(**changes),), CLOSED))
    extents = {0: extent} if extent else {}
    found = fitted(planned, CATALOG, {0: stop}, extents, {DAY: Indexed(1, 0)})
    return [(r.remember_from, r.start, r.end) for r in found.ranges]


def test_a_range_ends_where_timestamps_say_that_nothing_of_its_days_can_follow():
    assert fit(stop=700) == [(300, 400, 700)]
    assert fit(stop=200) == [(300, 400, 400)]
    assert fit(stop=2000) == [(300, 400, 1000)]


def test_a_range_is_widened_by_what_the_index_finds_outside_of_it():
    assert fit(stop=700, extent=(500, 600)) == [(300, 400, 700)]
    assert fit(stop=700, extent=(100, 900)) == [(0, 100, 900)]


def test_a_block_that_has_expired_in_part_is_read_from_where_the_log_begins():
    assert fit(stop=700, extent=(100, 900), begin=350) == [(350, 350, 900)]


def test_offsets_that_held_events_of_a_day_and_are_gone_are_refused():
    with pytest.raises(LostError) as refused:
        fit(extent=(9_000, 31_000), begin=20_000, start=25_000, end=30_000)
    assert str(refused.value) == (
        "topic `events.clickstream.v1`, partition 0 held something of day 2024-01-05 at offsets 9000 to 31000, and now "
        "has 20000 to 30000 only. restore it, or choose other days"
    )
    with pytest.raises(LostError):
        fit(extent=(21_000, 31_000), begin=20_000, start=25_000, end=30_000)
    with pytest.raises(LostError):
        fit(extent=(9_000, 29_000), begin=20_000, start=25_000, end=30_000)


def test_a_compacted_topic_is_refused():
    with pytest.raises(LostError, match=r"its `cleanup.policy` is compact"):
        plan(CATALOG, [DAY], LogState((partition(),), CLOSED, compacted=True))


def test_several_days_are_one_range_in_ascending_order_each_once():
    days = [DAY, DAY - timedelta(days=1), DAY]
    planned = plan(CATALOG, days, LogState((partition(),), CLOSED))
    assert planned.days == (date(2024, 1, 4), DAY)
    assert planned.records == 700


def test_no_day_is_an_error():
    with pytest.raises(ValueError, match="at least one day"):
        plan(CATALOG, [], LogState((partition(),), CLOSED))


def test_a_day_closes_when_the_watermark_passes_its_end_and_the_lateness():
    assert plan(CATALOG, [DAY], LogState((partition(),), CLOSED)).days == (DAY,)
    with pytest.raises(OpenDayError) as refused:
        plan(CATALOG, [DAY], LogState((partition(),), CLOSED - 1))
    assert str(refused.value) == (
        "day 2024-01-05 is not closed: the watermark must have passed 2024-01-06T00:00:00Z and the lateness of 1h; the "
        "log of topic `events.clickstream.v1` reaches to 2024-01-06T01:00:09.999Z, less `out_of_orderness` of 10s. "
        "choose days up to 2024-01-04, wait, or accept values that will change with --allow-open"
    )


def test_a_day_of_an_idle_log_closes_when_the_clock_passes_its_end_and_the_lateness():
    assert plan(CATALOG, [DAY], LogState((partition(),), at("2024-01-05T12:00:00"), observed_at=CLOSED)).days == (DAY,)
    with pytest.raises(OpenDayError):
        plan(CATALOG, [DAY], LogState((partition(),), at("2024-01-05T12:00:00"), observed_at=CLOSED - 1))


def test_an_open_day_is_accepted_where_one_asks_for_it():
    assert plan(CATALOG, [DAY], LogState((partition(),), CLOSED - 1), allow_open=True).days == (DAY,)


def test_an_empty_topic_proves_nothing():
    with pytest.raises(OpenDayError, match="topic `events.clickstream.v1` is empty"):
        plan(CATALOG, [DAY], LogState((partition(first_time=None, end=0, start=0),), None))


def test_a_topic_partition_that_never_held_a_record_is_no_obstacle():
    empty = partition(1, first_time=None, end=0, start=0)
    assert len(plan(CATALOG, [DAY], LogState((partition(), empty), CLOSED)).ranges) == 2


def test_expired_offsets_are_refused_saying_from_when_to_when_the_log_reaches():
    expired = partition(2, begin=500, start=500, first_time=at("2024-01-05T00:10:00"))
    with pytest.raises(ExpiredError) as refused:
        plan(CATALOG, [DAY], LogState((partition(), expired), at("2024-01-08T12:00:00")))
    assert str(refused.value) == (
        "offsets that day 2024-01-05 needs have expired from topic `events.clickstream.v1`: a run needs every record "
        "from 2024-01-04T23:55:00Z on, but the log no longer has them; it reaches from 2024-01-05T00:10:00Z to "
        "2024-01-08T12:00:00Z (partition 2 begins at offset 500). choose days from 2024-01-06 to 2024-01-07, or "
        "lengthen the topic's retention before more is lost"
    )


def test_offsets_that_expired_before_the_day_do_not_matter():
    older = partition(begin=100, first_time=at("2024-01-04T23:54:59"))
    assert plan(CATALOG, [DAY], LogState((older,), CLOSED)).days == (DAY,)


def test_a_topic_partition_whose_records_all_expired_is_refused():
    gone = partition(3, begin=1000, start=1000, first_time=None)
    with pytest.raises(ExpiredError, match="holds no record any more in 3"):
        plan(CATALOG, [DAY], LogState((partition(), gone), CLOSED))


def with_sessions(*windows: str) -> Catalog:
    sessions = [replace(CATALOG.metrics[0], windows=(parse_window(window),)) for window in windows]
    return replace(CATALOG, metrics=(*CATALOG.metrics, *sessions))


def test_sessions_need_twice_their_greatest_length_and_a_gap_before_the_day():
    catalog = with_sessions("session 30m max 6h", "session 2h max 3h")
    assert lookback_ms(CATALOG) == 0
    assert lookback_ms(catalog) == 12.5 * 3_600_000
    assert earliest_record_time(catalog, [DAY]) == at("2024-01-04T11:25:00")


def test_alerts_need_the_time_that_they_look_over_before_the_day():
    alert = replace(make_alert(), within=timedelta(minutes=90))
    assert lookback_ms(replace(CATALOG, alerts=(alert,))) == 90 * 60_000
    assert lookback_ms(replace(CATALOG, alerts=(replace(alert, within=None),))) == 0


def test_expired_offsets_that_a_session_may_reach_are_refused():
    catalog = with_sessions("session 30m max 6h")
    expired = partition(begin=100, first_time=at("2024-01-04T11:25:00"))
    with pytest.raises(ExpiredError, match=r"record from 2024-01-04T11:25:00Z on.*choose days from 2024-01-06 to"):
        plan(catalog, [DAY], LogState((expired,), at("2024-01-08T12:00:00")))
    older = partition(begin=100, first_time=at("2024-01-04T11:24:59"))
    assert plan(catalog, [DAY], LogState((older,), CLOSED)).days == (DAY,)


def test_a_log_that_begins_within_the_reach_of_a_session_is_whole():
    catalog = with_sessions("session 30m max 6h")
    young = partition(begin=0, start=0, first_time=at("2024-01-04T23:59:00"))
    assert plan(catalog, [DAY], LogState((young,), CLOSED)).days == (DAY,)


def make_alert() -> Alert:
    return Alert(
        name="many",
        kind="count",
        operator=">",
        threshold=Decimal(3),
        argument=None,
        metric=None,
        where=None,
        by=("user_id",),
        condition=None,
        within=timedelta(minutes=2),
        at_least=0,
        topic="alerts.many",
        description="",
        alert_version="v",
    )


def test_the_plan_in_words_names_offsets_and_metrics():
    lines = plan(CATALOG, [DAY], LogState((partition(),), CLOSED)).lines(CATALOG)
    assert lines[0] == "days: 2024-01-05"
    assert lines[1].startswith("metrics: events, events_by_type, distinct_users")
    assert lines[2] == (
        "events.clickstream.v1[0]: read offsets 400 to 1000 (end exclusive), remember from 300; the log has 0 to 1000"
    )
