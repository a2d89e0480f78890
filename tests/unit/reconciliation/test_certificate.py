"""Only evidence of the batch run certifies; the verdict on the speed layer stands beside it."""

from datetime import UTC, date, datetime

import msgspec
import pytest

from reconciliation.certificate import (
    Comparison,
    Counts,
    Outcome,
    Verdict,
    decide,
    exceptions_agree,
    ledgers_agree,
    manifest_complete,
)
from reconciliation.evidence import (
    Indexed,
    LedgerBlock,
    Manifest,
    ManifestError,
    OffsetRange,
    Position,
    Progress,
    read_manifest,
)

CLEAN = Comparison(compared=40, equal=40, not_yet_closed=0, residual=0)
COUNTS = Counts("events", exact_events=98, expected_events=90)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def offset_range(**changes):
    base = OffsetRange(
        topic_partition=0, start=0, end=100, log_begin=0, log_end=100, records=100, counted=90, late=8, duplicate=1,
        dead_letter=1,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def manifest(*ranges, **changes):
    base = Manifest(
        run_id="run-1",
        source="shop",
        topic="events",
        partition=date(2026, 3, 1),
        catalog_version="c1",
        ranges=ranges or (offset_range(),),
        dispositions={"counted": 90, "late": 8, "duplicate": 1, "dead_letter": 1},
        events=98,
    )
    return msgspec.structs.replace(base, **changes)


def progress(next_offset, topic_partition=0):
    return Progress({topic_partition: Position(topic_partition, NOON, next_offset, NOON)})


def failed(certificate):
    return [check.name for check in certificate.checks if check.outcome is Outcome.FAILS]


def test_complete_evidence_certifies():
    certificate = decide(manifest(), COUNTS, CLEAN, sketch_windows=3)
    assert certificate.certified
    assert certificate.verdict is Verdict.CLEAN
    assert certificate.causes == {
        "late": 8, "duplicate": 1, "id_conflict": 0, "dead_letter": 1, "sketch": 3, "not_yet_closed": 0,
    }  # fmt: skip


def test_a_defect_of_the_speed_layer_does_not_take_the_certificate_away():
    certificate = decide(manifest(), COUNTS, Comparison(40, 37, 1, 2), sketch_windows=0)
    assert certificate.certified
    assert certificate.verdict is Verdict.SPEED_DEFECT
    assert certificate.residual == 2


def test_rows_that_are_still_open_are_no_defect():
    certificate = decide(manifest(), COUNTS, Comparison(40, 37, 3, 0), sketch_windows=0)
    assert (certificate.verdict, certificate.residual) == (Verdict.NOT_YET_CLOSED, 0)
    assert certificate.causes["not_yet_closed"] == 3


def test_a_record_without_a_disposition_is_refused():
    certificate = decide(manifest(offset_range(counted=89)), COUNTS, CLEAN, sketch_windows=0)
    assert not certificate.certified
    assert failed(certificate) == ["dispositions_close"]
    assert "100 records, 99 disposed" in certificate.checks[2].detail


def test_a_day_that_was_still_open_when_it_was_read_is_refused():
    assert failed(decide(manifest(closed=False), COUNTS, CLEAN, sketch_windows=0)) == ["day_closed"]


def test_a_second_count_that_differs_is_refused_even_when_speed_agrees():
    certificate = decide(manifest(), Counts("events", 97, 90), CLEAN, sketch_windows=0)
    assert not certificate.certified
    assert failed(certificate) == ["events_agree"]
    assert certificate.checks[3].detail == "`events` holds 97, the manifest 98"


def test_expected_states_that_lost_events_are_refused():
    certificate = decide(manifest(), Counts("events", 98, 88), CLEAN, sketch_windows=0)
    assert failed(certificate) == ["expected_agrees"]


@pytest.mark.parametrize(("events", "dead_letters"), [(98, 1), (99, 2)])
def test_a_run_that_read_other_events_than_the_index_of_the_log_is_refused(events, dead_letters):
    assert decide(manifest(indexed=Indexed(events=99, dead_letters=1)), COUNTS, CLEAN, sketch_windows=0).certified
    other = manifest(indexed=Indexed(events=events, dead_letters=dead_letters))
    assert failed(decide(other, COUNTS, CLEAN, sketch_windows=0)) == ["index_agrees"]


def test_a_range_may_end_before_the_log_does_where_an_index_says_that_nothing_follows():
    whole = manifest(offset_range(log_end=130), indexed=Indexed(events=99, dead_letters=1))
    assert decide(whole, COUNTS, CLEAN, sketch_windows=0).certified


def test_without_an_unfiltered_count_the_other_evidence_decides():
    certificate = decide(manifest(), Counts(), CLEAN, sketch_windows=0)
    assert certificate.certified
    assert [check.name for check in certificate.checks if check.outcome is Outcome.NOT_CHECKED] == [
        "events_agree",
        "expected_agrees",
        "index_agrees",
    ]


def test_a_run_of_another_definition_of_the_count_is_not_certified():
    certificate = decide(manifest(), Counts(lacking="events"), CLEAN, sketch_windows=0)
    assert failed(certificate) == ["events_agree"]
    assert certificate.checks[3].detail == "the run did not compute `events` as it is defined now"


@pytest.mark.parametrize(
    ("ranges", "fault"),
    [
        ((offset_range(), offset_range()), "topic partition 0 twice"),
        ((offset_range(start=5, log_begin=7),), "read [5, 100) of a log [7, 100)"),
        ((offset_range(log_end=130),), "ends 30 offsets before the end of the log"),
        ((offset_range(records=101, counted=91),), "101 records in 100 offsets"),
        ((offset_range(), offset_range(topic_partition=2)), "no range for topic partition 1"),
    ],
)
def test_an_incomplete_manifest_says_what_is_missing(ranges, fault):
    check = manifest_complete(manifest(*ranges))
    assert check.outcome is Outcome.FAILS
    assert fault in check.detail


def test_a_manifest_without_ranges_is_incomplete():
    assert manifest_complete(manifest(ranges=())).detail == "no range"


def test_gaps_that_transaction_markers_leave_are_no_fault():
    assert manifest_complete(manifest(offset_range(records=90, counted=80))).outcome is Outcome.HOLDS


def test_the_same_evidence_has_the_same_fingerprint():
    one, two = (decide(manifest(), COUNTS, CLEAN, sketch_windows=3) for _ in range(2))
    other = decide(manifest(), COUNTS, Comparison(40, 39, 0, 1), sketch_windows=3)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_the_ledgers_are_compared_where_both_layers_stand_at_the_same_offset():
    blocks = [LedgerBlock(topic_partition=0, block=0, records=100, counted=90)]
    assert ledgers_agree(manifest(), blocks, progress(100), 10_000).outcome is Outcome.HOLDS
    assert ledgers_agree(manifest(), [], progress(100), 10_000).outcome is Outcome.FAILS
    assert ledgers_agree(manifest(), blocks, progress(140), 10_000).outcome is Outcome.NOT_CHECKED


def test_whole_blocks_of_the_run_are_compared_while_the_speed_layer_goes_on():
    ours = tuple(LedgerBlock(topic_partition=0, block=block, records=10, counted=9) for block in range(10))
    speed = [*ours[:9], LedgerBlock(topic_partition=0, block=9, records=10, counted=7)]
    check = ledgers_agree(manifest(ledger=ours), speed, progress(140), 10)
    assert check.outcome is Outcome.FAILS
    assert check.detail == "topic partition 0 block 9: batch 9, speed 7"
    assert not check.certifies
    assert ledgers_agree(manifest(ledger=ours), ours, progress(55), 10).detail == "45 events counted by both layers"


def test_a_block_that_speed_alone_has_counted_is_a_fault():
    ours = tuple(LedgerBlock(topic_partition=0, block=block, records=10, counted=9) for block in range(10))
    check = ledgers_agree(manifest(ledger=ours[:7] + ours[8:]), ours, progress(140), 10)
    assert check.detail == "topic partition 0 block 7: batch 0, speed 9"


def test_exceptions_are_compared_once_the_speed_layer_has_read_as_far():
    assert exceptions_agree(0, 0, 10, closed=True).outcome is Outcome.HOLDS
    assert exceptions_agree(1, 0, 10, closed=False).outcome is Outcome.NOT_CHECKED
    assert exceptions_agree(1, 2, 10, closed=True).detail == "1 known to batch alone; 2 known to speed alone"


def test_the_speed_layer_is_behind_by_the_offsets_it_has_not_published():
    ranges = (offset_range(), offset_range(topic_partition=1), offset_range(topic_partition=2, end=0, records=0))
    assert progress(60).behind(ranges) == {0: 40, 1: 100}
    assert progress(100).behind(ranges[:1]) == {}


def test_a_manifest_is_read_back_and_a_broken_one_names_the_run():
    text = msgspec.json.encode(manifest()).decode()
    assert read_manifest("run-1", text) == manifest()
    with pytest.raises(ManifestError, match="manifest of run `run-9` cannot be read.*run the batch layer"):
        read_manifest("run-9", '{"run_id": "run-9"}')
