"""Sorting rows with and without the disk."""

import random
from pathlib import Path

import pytest

from orchestration.external_sort import Row, sorted_rows


def rows(count: int) -> list[Row]:
    chance = random.Random(3)
    return [
        Row(chance.randrange(50), line, None if line % 7 == 0 else b"k%d" % line, b"v" * chance.randrange(9), line % 3)
        for line in range(count)
    ]


@pytest.mark.parametrize("memory_bytes", [10**9, 40_000, 1], ids=["in memory", "some runs", "a run per row"])
def test_rows_come_by_arrival_and_ties_in_the_order_of_the_file(tmp_path: Path, memory_bytes: int) -> None:
    given = rows(400)
    found = list(sorted_rows(iter(given), tmp_path, memory_bytes))
    assert found == sorted(given, key=lambda row: row.at)
    assert list(tmp_path.iterdir()) == []


def test_nothing_sorts_to_nothing() -> None:
    assert list(sorted_rows([])) == []


def test_runs_are_removed_when_the_reader_stops_early(tmp_path: Path) -> None:
    reader = sorted_rows(rows(5_000), tmp_path, 100_000)
    next(reader)
    assert list(tmp_path.iterdir()) != []
    reader.close()
    assert list(tmp_path.iterdir()) == []
