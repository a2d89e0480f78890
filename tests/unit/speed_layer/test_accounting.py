"""Whether the ledger closes, from samples of tables and log.

Blocks have 10,000 offsets. `whole(n)` is a row of `n` records that are all counted.
"""

from dataclasses import replace

import pytest
import yaml

from metrics.catalog import Catalog
from metrics.catalog_build import parse_catalog
from speed_layer.accounting import Block, Finding, Judgement, Sample, Span, confirmed, judge, metric_of_all


def whole(records: int, counted: int | None = None) -> Block:
    return Block(records, records, records if counted is None else counted)


CLOSED = Sample(
    reached={0: 25_000},
    blocks={(0, 0): whole(10_000), (0, 1): whole(10_000, 9_000), (0, 2): whole(5_000)},
    published=24_000,
    begins={0: 0},
    ends={0: 25_000},
)


def no_reading(span: Span) -> int | None:
    pytest.fail(f"{span} was read again, though it has a record for each offset")


def reads(records: int | None) -> object:
    return lambda _: records


def without(sample: Sample, *places: tuple[int, int]) -> Sample:
    return replace(sample, blocks={place: row for place, row in sample.blocks.items() if place not in places})


def test_a_log_with_a_record_for_each_offset_closes_without_being_read_again() -> None:
    assert judge(CLOSED, CLOSED, no_reading) == Judgement((), 0)


def test_markers_are_no_hole() -> None:
    marked = replace(CLOSED, blocks=CLOSED.blocks | {(0, 0): whole(9_990)}, published=23_990)

    assert judge(marked, marked, reads(9_990)) == Judgement((), 0)


def test_a_block_of_markers_alone_has_no_row_and_is_no_hole() -> None:
    marked = replace(without(CLOSED, (0, 0)), published=14_000)

    assert judge(marked, marked, reads(0)) == Judgement((), 0)


def test_records_that_are_not_in_the_ledger_are_a_hole() -> None:
    short = replace(CLOSED, blocks=CLOSED.blocks | {(0, 0): whole(9_990)}, published=23_990)

    found = judge(short, short, reads(9_995))

    assert found.findings == (Finding("missing", 5, Span(0, 0, 10_000, whole=True)),)
    assert found.findings[0].text == "offsets 0 to 10000 of partition 0: 5 records not in the ledger"


def test_a_row_that_is_gone_is_a_hole_though_all_other_blocks_are_complete() -> None:
    gone = without(CLOSED, (0, 1))

    found = judge(gone, gone, reads(10_000))

    assert [finding.kind for finding in found.findings] == ["missing", "doubled"]
    assert found.findings[1].text == "published rows have 9,000 more events than the ledger counts"


def test_what_cannot_be_read_again_now_is_said_to_be_unread_and_is_no_hole() -> None:
    gone = replace(without(CLOSED, (0, 1)), published=15_000)

    assert judge(gone, gone, reads(None)) == Judgement((), 1)


@pytest.mark.parametrize("row", [whole(10_001, 10_000), whole(20_000, 10_000)])
def test_more_records_than_offsets_overlap(row: Block) -> None:
    twice = replace(CLOSED, blocks=CLOSED.blocks | {(0, 0): row})

    [finding] = judge(twice, twice, no_reading).findings

    assert (finding.kind, finding.records) == ("surplus", row.records - 10_000)


def test_records_where_a_consumer_sees_markers_overlap() -> None:
    twice = replace(CLOSED, blocks=CLOSED.blocks | {(0, 0): whole(9_990)}, published=23_990)

    [finding] = judge(twice, twice, reads(9_980)).findings

    assert (finding.kind, finding.records) == ("surplus", 10)


def test_the_last_block_may_know_what_is_not_published_yet() -> None:
    under_way = replace(CLOSED, reached={0: 24_000})

    assert judge(under_way, under_way, no_reading) == Judgement((), 0)


def test_records_beyond_the_end_of_the_log_overlap() -> None:
    beyond = replace(CLOSED, blocks=CLOSED.blocks | {(0, 2): whole(5_001)}, published=24_001)

    assert [finding.kind for finding in judge(beyond, beyond, no_reading).findings] == ["surplus"]


def test_a_last_block_that_grows_is_read_again_when_it_stands() -> None:
    growing = replace(CLOSED, blocks=CLOSED.blocks | {(0, 2): whole(4_990)}, published=23_990)
    earlier = replace(growing, reached={0: 24_000})

    assert judge(earlier, growing, no_reading) == Judgement((), 0)
    assert judge(growing, growing, reads(5_000)).findings == (
        Finding("missing", 10, Span(0, 20_000, 25_000, whole=False)),
    )


def test_each_record_has_one_disposition() -> None:
    unlike = replace(CLOSED, blocks=CLOSED.blocks | {(0, 0): Block(10_000, 9_999, 10_000)})

    assert [(f.kind, f.records) for f in judge(unlike, unlike, no_reading).findings] == [("unbalanced", 1)]


@pytest.mark.parametrize(("published", "kind"), [(23_999, "lost"), (24_001, "doubled")])
def test_where_the_log_pauses_one_event_is_seen(published: int, kind: str) -> None:
    apart = replace(CLOSED, published=published)

    assert [(f.kind, f.records) for f in judge(apart, apart, no_reading).findings] == [(kind, 1)]


@pytest.mark.parametrize("ahead", [-300, 300])
def test_work_under_way_is_no_difference(ahead: int) -> None:
    """Rows may be written before the ledger's, or after them, while both grow from look to look."""
    before = replace(CLOSED, published=24_000 + ahead)
    now = replace(
        CLOSED,
        reached={0: 25_500},
        ends={0: 26_000},
        blocks=CLOSED.blocks | {(0, 2): whole(5_600)},
        published=24_600 + ahead,
    )

    assert judge(before, now, no_reading) == Judgement((), 0)


def test_more_than_came_meanwhile_is_a_difference_though_the_log_never_pauses() -> None:
    now = replace(
        CLOSED, reached={0: 25_500}, ends={0: 26_000}, blocks=CLOSED.blocks | {(0, 2): whole(5_600)}, published=23_400
    )

    assert [(f.kind, f.records) for f in judge(CLOSED, now, no_reading).findings] == [("lost", 600)]


def test_a_metric_younger_than_what_the_log_has_lost_need_not_have_that() -> None:
    expired = replace(CLOSED, begins={0: 10_000})

    assert judge(expired, replace(expired, published=14_000), no_reading).findings == ()
    assert [f.kind for f in judge(expired, replace(expired, published=13_999), no_reading).findings] == ["lost"]


def test_blocks_before_the_beginning_of_the_log_are_not_asked_for() -> None:
    expired = replace(without(CLOSED, (0, 0)), begins={0: 10_000}, published=14_000)

    assert judge(expired, expired, no_reading) == Judgement((), 0)


def test_without_a_metric_of_all_events_the_blocks_are_checked_alone() -> None:
    unknown = replace(CLOSED, published=None)

    assert judge(unknown, unknown, no_reading) == Judgement((), 0)


def test_a_finding_is_confirmed_by_the_next_look() -> None:
    lost, other = Finding("lost", 5), Finding("missing", 3, Span(0, 0, 10_000, whole=True))

    assert confirmed(Judgement((lost,), 0), Judgement((Finding("lost", 7), other), 0)).findings == (Finding("lost", 7),)


def test_a_log_is_published_when_every_partition_that_holds_something_is() -> None:
    sample = replace(CLOSED, ends={0: 25_000, 1: 10, 2: 7}, begins={0: 0, 1: 0, 2: 7})

    assert sample.is_in({0: 25_000, 1: 10})
    assert not sample.is_in({0: 25_000, 1: 9})
    assert not sample.is_in({0: 25_000})


def catalog(metrics: str) -> Catalog:
    tree = {
        "source": "shop",
        "topic": "events",
        "event_id": "id",
        "event_time": {"field": "ts", "unit": "ms"},
        "key": "user",
        "fields": {"user": "string"},
        "metrics": yaml.safe_load(metrics),
    }
    return parse_catalog(tree, {}, "test")


def test_the_metric_of_all_events_has_no_filter_and_the_fewest_rows() -> None:
    chosen = metric_of_all(
        catalog(
            """
            visits: {agg: count, window: session 30m}
            mine: {agg: count, where: user = 'me', window: tumbling 1m}
            each: {agg: count, by: [user], window: tumbling 1m}
            users: {agg: distinct(user), window: tumbling 1m}
            all: {agg: count, window: tumbling 1m}
            """
        )
    )

    assert chosen is not None
    assert chosen.name == "all"
    assert metric_of_all(catalog("visits: {agg: count, window: session 30m}")) is None
