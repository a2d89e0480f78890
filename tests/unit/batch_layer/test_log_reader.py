"""Runs of records that end where they are to, however the records come."""

from collections.abc import Iterator, Sequence

import pytest

from batch_layer.log_reader import Records, in_blocks

OFFSETS = [*range(3, 27), 41, 42, 99]


def coming(offsets: Sequence[int], at_once: int) -> Iterator[Records]:
    for first in range(0, len(offsets), at_once):
        some = offsets[first : first + at_once]
        absent = [None] * len(some)
        yield Records([*some], [*some], [*absent], [*absent], [*absent])


@pytest.mark.parametrize("at_once", [1, 2, 7, 10, 100])
def test_runs_end_at_multiples_whatever_comes_together(at_once: int) -> None:
    found = [(span, records.offsets) for span, records in in_blocks(coming(OFFSETS, at_once), 3, 100, 10)]
    assert [span for span, _ in found] == [(3, 10), *((n, n + 10) for n in range(10, 100, 10))]
    assert [offset for _, offsets in found for offset in offsets] == OFFSETS
    assert all(span[0] <= offset < span[1] for span, offsets in found for offset in offsets)


def test_of_no_records_there_is_one_run_without_any() -> None:
    for read in ([], [Records()]):
        assert [(span, len(records)) for span, records in in_blocks(read, 5, 25, 10)] == [((5, 25), 0)]
