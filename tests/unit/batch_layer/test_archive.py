"""What the archive of a log holds, what it gives back, and how damage is found."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from batch_layer.archive import Archive, ArchivedStretch, ArchiveError, reach
from batch_layer.log_reader import Records
from metrics.window import DAY_MS

NOON = 20_000 * DAY_MS + DAY_MS // 2


def records(begin: int = 0, count: int = 5) -> Records:
    """Records whose days take turns, with every kind of absent part."""
    places = range(begin, begin + count)
    return Records(
        [*places],
        [NOON + DAY_MS * (place % 2) for place in places],
        [None if place % 3 == 0 else b"" if place % 3 == 1 else b"k%d" % place for place in places],
        [None if place % 5 == 4 else b"\x00\xffv%d" % place for place in places],
        [[("a", None), ("b", b"\x01")] if place % 4 == 2 else None for place in places],
    )


def read(archive: Archive, stretch: ArchivedStretch, start: int, end: int) -> Records:
    found = Records()
    for more in archive.read(stretch, start, end):
        found.extend(more)
    return found


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(f"{tmp_path}/archive", "events.shop", "id-1")


def test_what_was_copied_is_given_back_byte_for_byte(archive: Archive):
    written = archive.write(3, (0, 5), records(), {"1": "{}"})
    assert archive.stretches() == {3: [written]}
    assert read(archive, written, 0, 5) == records()
    assert read(archive, written, 1, 4) == records(1, 3)
    assert (written.records, written.first_time, written.greatest_time) == (5, NOON, NOON + DAY_MS)
    archive.check(written)


def test_a_long_stretch_is_given_back_in_order_from_any_offset(archive: Archive):
    written = archive.write(0, (100, 50_100), records(100, 50_000), {})
    assert read(archive, written, 100, 50_100) == records(100, 50_000)
    assert read(archive, written, 39_990, 40_110) == records(39_990, 120)
    archive.check(written)


def test_files_are_by_the_day_on_which_records_were_sent(archive: Archive, tmp_path: Path):
    archive.write(3, (0, 5), records(), {})
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet"))
    name = "00003-0000000000000000000-0000000000000000005.parquet"
    assert files == [f"archive/events.shop/id-1/sent={day}/{name}" for day in ("2024-10-04", "2024-10-05")]


def test_any_file_system_will_do():
    archive = Archive("memory://archive", "events.shop", "id-1")
    written = archive.write(0, (0, 5), records(), {})
    assert read(Archive("memory://archive", "events.shop", "id-1"), written, 0, 5) == records()
    assert archive.stretches() == {0: [written]}


def test_a_stretch_without_records_is_known_to_be_empty(archive: Archive):
    written = archive.write(0, (7, 20_000), Records(), {})
    assert (written.records, written.files, len(written.blocks)) == (0, (), 2)
    assert read(archive, written, 7, 20_000) == Records()


def test_of_an_offset_that_was_copied_twice_one_copy_counts(archive: Archive):
    archive.write(0, (0, 5), records(), {})
    longer = archive.write(0, (0, 9), records(count=9), {})
    after = archive.write(0, (9, 12), records(9, 3), {})
    assert archive.stretches() == {0: [longer, after]}


def test_a_topic_that_was_made_anew_has_another_archive(archive: Archive, tmp_path: Path):
    archive.write(0, (0, 5), records(), {})
    assert Archive(f"{tmp_path}/archive", "events.shop", "id-2").stretches() == {}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def swap(file: Path) -> None:
    other = next(path for path in file.parents[1].rglob("*.parquet") if path != file)
    shutil.copy(other, file)


@pytest.mark.parametrize("damage", [Path.unlink, cut, swap])
def test_damage_is_found(archive: Archive, tmp_path: Path, damage: Callable[[Path], None]):
    written = archive.write(0, (0, 4), records(count=4), {})
    damage(min(tmp_path.rglob("*.parquet")))
    with pytest.raises(ArchiveError, match=r"is damaged at `sent=2024-10-04/.*copy its offsets again"):
        archive.check(written)


def test_a_copy_that_was_broken_off_is_not_there(archive: Archive, tmp_path: Path):
    archive.write(0, (0, 5), records(), {})
    shutil.rmtree(next(tmp_path.rglob("stretches")))
    assert archive.stretches() == {}


def stretch(begin: int, end: int) -> ArchivedStretch:
    return ArchivedStretch("t", "id", 0, begin, end, 0, None, None, (), ())


@pytest.mark.parametrize(
    ("log_begin", "reaches"),
    [(30, [(10, 20), (20, 30)]), (25, [(10, 20), (20, 30)]), (20, [(10, 20)]), (35, []), (0, []), (45, [(40, 50)])],
)
def test_an_archive_reaches_back_as_far_as_it_has_no_gap(log_begin: int, reaches: list[tuple[int, int]]):
    copied = [stretch(0, 5), stretch(10, 20), stretch(20, 30), stretch(40, 50)]
    assert [(one.begin, one.end) for one in reach(copied, log_begin)] == reaches
