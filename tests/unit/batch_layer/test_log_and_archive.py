"""A log and its archive as one: from where they reach, where a day begins and where it ends."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batch_layer import log_reader
from batch_layer.archive import Archive, ArchivedStretch
from batch_layer.archiving import Stretch, lacking
from batch_layer.log import with_archive
from batch_layer.log_reader import Records
from batch_layer.manifest import LogPartition, LogState
from batch_layer.preview import estimated_s
from batch_layer.reading import LogReader
from infra.settings import Settings


def stretch(begin: int, end: int, first_time: int | None = None, greatest: int | None = None) -> ArchivedStretch:
    return ArchivedStretch("t", "id", 0, begin, end, end - begin, first_time, greatest, (), ())


COPIED = [stretch(0, 100, 1_000, 1_900), stretch(100, 200, 2_000, 2_900), stretch(200, 300, 3_000, 3_900)]


def merged(since: int, begin: int = 250, copied: list[ArchivedStretch] = COPIED) -> LogPartition:
    found = LogPartition(0, begin=begin, end=400, first_time=3_500, start=320)
    state = with_archive(LogState((found,), 5_000), {0: copied}, since)
    return state.partitions[0]


def test_a_log_begins_where_its_archive_does():
    found = merged(since=4_000)
    assert (found.begin, found.in_log_from, found.first_time, found.start) == (0, 250, 1_000, 320)
    assert [one.begin for one in found.archived] == [0, 100, 200]


def test_a_day_may_begin_in_the_archive():
    assert merged(since=2_500).start == 100
    assert merged(since=0).start == 0


def test_an_archive_with_a_gap_before_the_log_is_of_no_use():
    found = merged(since=2_500, begin=310)
    assert (found.begin, found.archived, found.start) == (310, (), 320)


def test_what_is_copied_is_what_has_come_since_in_stretches():
    assert lacking({}, {0: (5, 400_005)}) == ([Stretch(0, 5, 200_005), Stretch(0, 200_005, 400_005)], [])
    assert lacking({0: COPIED}, {0: (250, 310), 1: (0, 0)}) == ([Stretch(0, 300, 310)], [])
    assert lacking({0: COPIED}, {0: (250, 300)}) == ([], [])


def test_what_expired_before_it_was_copied_is_a_gap_and_a_hole_is_filled():
    assert lacking({0: COPIED}, {0: (350, 400)}) == ([Stretch(0, 350, 400)], [Stretch(0, 300, 350)])
    holed = [COPIED[0], COPIED[2]]
    assert lacking({0: holed}, {0: (50, 300)}) == ([Stretch(0, 100, 200)], [])
    assert lacking({0: holed}, {0: (150, 300)}) == ([Stretch(0, 150, 200)], [Stretch(0, 100, 150)])


def test_each_offset_is_read_from_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[tuple[str, int, int]] = []

    def from_log(_: Settings, __: str, ___: int, start: int, end: int) -> Any:
        asked.append(("log", start, end))
        return iter(())

    def from_archive(_: Archive, one: ArchivedStretch, start: int, end: int) -> Any:
        asked.append((f"archive {one.begin}", start, end))
        return iter([Records()])

    monkeypatch.setattr(log_reader, "read", from_log)
    monkeypatch.setattr(Archive, "read", from_archive)
    reader = LogReader(Settings(), "t", Archive(str(tmp_path), "t", "id"), {0: tuple(COPIED)}, {0: 250})
    assert [*reader.read(0, 50, 400)] == [Records()] * 3
    assert asked == [("archive 0", 50, 100), ("archive 100", 100, 200), ("archive 200", 200, 250), ("log", 250, 400)]
    asked.clear()
    assert [*reader.read(0, 260, 280)] == []
    assert asked == [("log", 260, 280)]
    asked.clear()
    assert [*replace(reader, archived={}).read(0, 50, 400)] == []
    assert asked == [("log", 50, 400)]


@pytest.mark.parametrize(
    ("known", "offsets", "seconds"),
    [([], 5, None), ([(10, 4.0)], 99, 4.0), ([(0, 2.0), (100, 12.0)], 50, 7.0), ([(0, 2.0), (100, 12.0)], 200, 22.0)],
)
def test_a_run_is_expected_to_take_as_long_as_runs_took(
    known: list[tuple[int, float]], offsets: int, seconds: float | None
):
    assert estimated_s(known, offsets) == seconds
