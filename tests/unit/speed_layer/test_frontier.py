"""What is published of a topic partition, whatever the order in which receipts arrive."""

import itertools

import pytest

from speed_layer.partials import Receipt
from speed_layer.publish import Frontier

FIRST = Receipt(0, 100, 100, 200, parts=2, watermark=10)
SECOND = Receipt(0, 100, 200, 250, parts=1, watermark=20)
THIRD = Receipt(0, 100, 250, 300, parts=1, watermark=30)
MARKERS = Receipt(0, 100, 200, 210, parts=0, watermark=20)
AFTER = Receipt(0, 100, 210, 240, parts=1, watermark=30)


def test_nothing_is_published_before_all_parts_of_the_first_chunk_are() -> None:
    frontier = Frontier(100, None, {})

    frontier.take(FIRST, 1)
    frontier.take(SECOND, 1)

    assert (frontier.next_offset, frontier.watermark) == (100, None)


@pytest.mark.parametrize("order", list(itertools.permutations([(FIRST, 1), (FIRST, 1), (SECOND, 1), (THIRD, 1)])))
def test_the_order_of_receipts_does_not_matter(order: tuple[tuple[Receipt, int], ...]) -> None:
    frontier = Frontier(100, None, {})

    for receipt, count in order:
        frontier.take(receipt, count)

    assert (frontier.next_offset, frontier.watermark, frontier.ahead) == (300, 30, {})


def test_a_beat_moves_the_watermark_of_what_is_published() -> None:
    frontier = Frontier(300, 30, {})

    frontier.take(Receipt(0, 100, 300, 300, parts=0, watermark=50), 1)

    assert (frontier.next_offset, frontier.watermark) == (300, 50)


def test_a_beat_from_beyond_the_frontier_says_nothing_yet() -> None:
    frontier = Frontier(100, None, {})

    frontier.take(Receipt(0, 100, 300, 300, parts=0, watermark=50), 1)

    assert (frontier.next_offset, frontier.watermark) == (100, None)


def test_a_beat_passes_offsets_that_hold_no_records() -> None:
    frontier = Frontier(300, 30, {})

    frontier.take(Receipt(0, 100, 300, 301, parts=0, watermark=30), 1)

    assert frontier.next_offset == 301


@pytest.mark.parametrize("order", list(itertools.permutations([(FIRST, 1), (FIRST, 1), (MARKERS, 1), (AFTER, 1)])))
def test_offsets_without_records_are_passed_in_whatever_order_the_beat_comes(
    order: tuple[tuple[Receipt, int], ...],
) -> None:
    frontier = Frontier(100, None, {})

    for receipt, count in order:
        frontier.take(receipt, count)

    assert (frontier.next_offset, frontier.watermark, frontier.ahead) == (240, 30, {})


def test_the_watermark_never_goes_back() -> None:
    frontier = Frontier(300, 30, {})

    frontier.take(Receipt(0, 100, 300, 310, parts=1, watermark=25), 1)

    assert (frontier.next_offset, frontier.watermark) == (310, 30)
