"""Reading rows: formats, compression, damage, and what is no row."""

import gzip
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from orchestration.row_files import IngestError, Line, Rejected, RowFile

CSV = "id,ts,note\n1,2024-01-01 00:00:00,a\n2,2024-01-01 00:00:01,\n"


def read(path: Path) -> list[Line | Rejected]:
    with RowFile(path) as file:
        return list(file.rows())


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst", "A.CSV.GZ"])
def test_compression_is_found_by_content(tmp_path: Path, name: str) -> None:
    content = CSV.encode()
    pack = {".gz": gzip.compress, ".zst": zstd}.get(Path(name.lower()).suffix, bytes)
    assert read(write(tmp_path / name, pack(content))) == [
        Line(2, {"id": "1", "ts": "2024-01-01 00:00:00", "note": "a"}),
        Line(3, {"id": "2", "ts": "2024-01-01 00:00:01"}),
    ]


def test_a_compressed_file_needs_no_suffix_that_says_so(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "a.csv", gzip.compress(CSV.encode())))) == 2


def test_a_row_keeps_the_line_on_which_it_begins_when_cells_hold_line_breaks(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.csv", 'a,b\n"x\ny",1\n"z",2\n'))
    assert [row.number for row in found if isinstance(row, Line)] == [2, 4]


def test_a_row_with_too_few_cells_is_rejected_with_its_line_and_text(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.csv", "a,b\n1,2\n3\n\n4,5\n"))
    assert found[1] == Rejected(3, "a row must have 2 cells; got 1", "3")
    assert [type(row) for row in found] == [Line, Rejected, Line]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    with RowFile(write(tmp_path / "a.csv", b"\xef\xbb\xbfa,b\n1,2\n")) as file:
        assert file.columns == ("a", "b")


def test_tabs_separate_the_cells_of_a_tsv(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.tsv", "a\tb\n1\t2,3\n")) == [Line(2, {"a": "1", "b": "2,3"})]


def test_ndjson_keeps_the_bytes_of_values_and_rejects_what_is_no_object(tmp_path: Path) -> None:
    first, second, third = read(write(tmp_path / "a.ndjson", '{"a": 1.10}\n\n[1]\n{"b": "\\u00e9"}\n'))
    assert isinstance(first, Line)
    assert bytes(first.values["a"]) == b"1.10"
    assert isinstance(second, Rejected)
    assert (second.line, second.raw) == (3, "[1]")
    assert isinstance(third, Line)
    assert third.number == 4


def test_parquet_is_read_compressed_or_not(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1, 2], "b": ["x", None]}).write_parquet(tmp_path / "a.parquet")
    packed = write(tmp_path / "b.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    expected = [Line(1, {"a": 1, "b": "x"}), Line(2, {"a": 2})]
    assert read(tmp_path / "a.parquet") == read(packed) == expected


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="the file to ingest must exist; got `.*none.csv`"):
        RowFile(tmp_path / "none.csv")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="must be a file"):
        RowFile(tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet", "a.csv.gz"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IngestError, match="the file to ingest must hold rows"):
        RowFile(write(tmp_path / name, gzip.compress(b"") if name.endswith("gz") else b""))


def test_an_unknown_kind_of_file_is_refused_with_the_suffixes_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"got `a.xlsx`. give it the suffix .csv"):
        RowFile(write(tmp_path / "a.xlsx", "x"))


def test_a_file_that_is_not_what_its_suffix_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="must be a whole parquet file"):
        RowFile(write(tmp_path / "a.parquet", "no parquet at all"))


def test_a_truncated_file_is_refused_naming_the_last_good_line(tmp_path: Path) -> None:
    packed = gzip.compress("".join(["a,b\n", *(f"{n},{n * 7919}\n" for n in range(20_000))]).encode())
    with pytest.raises(IngestError, match=r"must be whole; it is damaged after line [1-9]\d+"):
        read(write(tmp_path / "a.csv.gz", packed[: len(packed) // 2]))


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="must name each column once"):
        RowFile(write(tmp_path / "a.csv", "a,a\n1,2\n"))
