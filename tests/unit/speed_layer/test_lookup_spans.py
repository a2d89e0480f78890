"""What was known of a lookup at an offset is settled once, whoever reads the offset, and when."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from metrics.lookup import Known
from serving.lookup_positions import Span
from speed_layer.lookup_spans import SpansRead


class Rows:
    """The table as ClickHouse keeps it: rows of one key replace each other, a token counts once."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Span] = {}
        self.tokens: set[str] = set()
        self.asked_since: list[int] = []
        self.before_claim: Callable[[], object] = lambda: None

    def spans(self, start: int, end: int, since: int) -> list[Span]:
        self.asked_since.append(since)
        found = [span for span in self.rows.values() if since <= span.start < end and span.end >= start]
        return sorted(found, key=lambda span: (span.opened_at or 0, span.start))

    def claim(self, span: Span, token: str) -> None:
        once, self.before_claim = self.before_claim, lambda: None
        once()
        if token in self.tokens:
            return
        self.tokens.add(token)
        opened = len(self.rows) if span.opened_at is None else span.opened_at
        former = self.rows.get((span.start, opened), span)
        self.rows[span.start, opened] = replace(span, end=max(span.end, former.end), opened_at=opened)


@pytest.fixture
def table() -> Rows:
    return Rows()


def settled(read: SpansRead, start: int, end: int, position: int) -> list[int]:
    """At each offset of a chunk, what is known of the lookup's only partition; `position` is what the reader knows."""
    spans = read.settle(start, end, lambda: {0: position})
    known = Known.of((0, span.start, span.end, span.positions) for span in spans)
    return [next(at[0] for _, first, last, at in known.spans if first <= offset < last) for offset in range(start, end)]


def test_a_job_beside_another_joins_with_what_the_other_knew_however_late_it_comes(table: Rows) -> None:
    live, beside = SpansRead(table), SpansRead(table)
    assert settled(live, 0, 4, 1) == [1] * 4
    assert settled(beside, 0, 3, 9) == [1] * 3
    assert settled(live, 4, 6, 2) == [2] * 2
    assert settled(live, 6, 8, 3) == [3] * 2
    assert settled(beside, 3, 10, 9) == [1, 2, 2, 3, 3, 9, 9]
    assert settled(live, 8, 11, 4) == [9, 9, 4]


@pytest.mark.parametrize("other_end", [3, 5, 8])
def test_of_two_that_claim_at_once_one_holds_for_both(table: Rows, other_end: int) -> None:
    live, beside = SpansRead(table), SpansRead(table)
    settled(live, 0, 2, 1)
    settled(beside, 0, 2, 1)
    told: list[int] = []
    table.before_claim = lambda: told.extend(settled(beside, 2, other_end, 7))
    mine = settled(live, 2, 5, 2)
    assert told[: 5 - 2] == mine[: other_end - 2] == [7] * min(3, other_end - 2)
    assert mine[other_end - 2 :] == [2] * (5 - other_end)
    assert settled(SpansRead(table), 2, 5, 9) == mine


def test_a_job_that_begins_again_joins_with_what_it_knew_at_first(table: Rows) -> None:
    first = SpansRead(table)
    known = settled(first, 0, 3, 1) + settled(first, 3, 6, 2)
    assert settled(SpansRead(table), 0, 7, 5) == [*known, 5]
    assert settled(first, 0, 3, 6) == known[:3]


def test_there_are_as_many_rows_as_changes(table: Rows) -> None:
    read = SpansRead(table)
    for start in range(0, 30, 3):
        # the offset before each chunk holds no record
        settled(read, start + 1, start + 3, 1 if start < 20 else 2)
    assert [(span.start, span.end, span.positions[0]) for span in table.spans(0, 99, 0)] == [(1, 21, 1), (21, 30, 2)]


def test_what_is_long_read_is_not_asked_for_again(table: Rows) -> None:
    read = SpansRead(table)
    for start in range(9):
        settled(read, start, start + 1, start)
    assert table.asked_since[-1] == 7
    asked = len(table.asked_since)
    settled(SpansRead(table), 0, 9, 9)
    assert len(table.asked_since) == asked + 1


def test_tokens_of_rows_that_were_deleted_stop_nobody(table: Rows) -> None:
    settled(SpansRead(table), 0, 4, 1)
    table.rows.clear()
    assert settled(SpansRead(table), 0, 4, 2) == [2] * 4
