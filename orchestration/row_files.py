"""Reads rows of CSV, NDJSON and Parquet files, plain or compressed, with the line of each."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

csv.field_size_limit(2**31 - 1)

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_COMPRESSED_SUFFIXES = {".gz", ".gzip", ".zst", ".zstd"}
_FORMATS = {".csv": "csv", ".tsv": "tsv", ".txt": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson"}
_FORMATS |= {".parquet": "parquet", ".pq": "parquet"}
_PARQUET_ROWS = 10_000
_LOOK_AHEAD_ROWS = 1_000
_COPY_BYTES = 1 << 20


class IngestError(ValueError):
    """A file that cannot be ingested as asked; the text names the file, the rule, what was found and the way out."""


@dataclass(frozen=True)
class Rejected:
    """A row that is no event: its line, why, and the row itself, so that nothing is lost."""

    line: int
    reason: str
    raw: str


@dataclass(frozen=True)
class Line:
    """A row with its line number (of a Parquet file: row number), from 1.

    Values are text in a CSV file, raw JSON in an NDJSON file, Python values in a Parquet file; an empty cell is absent.
    """

    number: int
    values: Mapping[str, Any]


class RowFile:
    """A file of rows, read once from start to end.

    Args:
        path: of the file.

    Attributes:
        format: csv, tsv, ndjson or parquet.
        columns: of an NDJSON file, the names that occur in its first rows.
        size_bytes: of the file on disk.

    Raises:
        IngestError: the file is missing, empty, damaged or of an unknown kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            message = f"the file to ingest must exist; got `{path}`. check its name"
            raise IngestError(message)
        if not path.is_file():
            message = f"the file to ingest must be a file; got `{path}`. name a CSV, NDJSON or Parquet file"
            raise IngestError(message)
        self.size_bytes = path.stat().st_size
        if self.size_bytes == 0:
            raise self._empty()
        try:
            self._disk = path.open("rb")
        except OSError as error:
            message = f"`{path}` must be readable; got {error.strerror}"
            raise IngestError(message) from error
        self._last_line = 0
        try:
            self._stream, name = self._decompressed()
            self.format = self._format(name)
            self._rows = self._open()
        except BaseException:
            self._disk.close()
            raise

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.close()

    @property
    def bytes_read(self) -> int:
        """How much of the file was read from disk."""
        return 0 if self._disk.closed else self._disk.tell()

    def rows(self) -> Iterator[Line | Rejected]:
        """Every row, in the file's order.

        Raises:
            IngestError: the file is damaged.
        """
        return self._guarded(self._rows)

    def _guarded(self, rows: Iterator[Line | Rejected]) -> Iterator[Line | Rejected]:
        try:
            for row in rows:
                self._last_line = row.number if isinstance(row, Line) else row.line
                yield row
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            message = f"`{self.path}` must be whole; it is damaged after line {self._last_line}: {error}"
            raise IngestError(message) from error

    def _empty(self) -> IngestError:
        return IngestError(f"the file to ingest must hold rows; `{self.path}` is empty")

    def _decompressed(self) -> tuple[IO[bytes], str]:
        name = self.path.name.lower()
        magic = self._disk.read(4)
        self._disk.seek(0)
        packed = next((kind for mark, kind in _MAGIC.items() if magic.startswith(mark)), None)
        if Path(name).suffix in _COMPRESSED_SUFFIXES:
            name = Path(name).stem
        if packed == "gzip":
            return cast("IO[bytes]", gzip.GzipFile(fileobj=self._disk)), name
        if packed == "zstd":
            return io.BufferedReader(cast("io.RawIOBase", pa.CompressedInputStream(self._disk, "zstd"))), name
        return self._disk, name

    def _format(self, name: str) -> str:
        if Path(name).suffix in _FORMATS:
            return _FORMATS[Path(name).suffix]
        message = (
            f"the file to ingest must be CSV, NDJSON or Parquet; got `{self.path.name}`. give it the suffix .csv, "
            ".tsv, .ndjson, .jsonl or .parquet (and .gz or .zst where it is compressed)"
        )
        raise IngestError(message)

    def _open(self) -> Iterator[Line | Rejected]:
        """The rows, after a look at the columns."""
        try:
            if self.format == "parquet":
                return self._parquet()
            if self.format == "ndjson":
                rows = self._ndjson()
                first = list(itertools.islice(rows, _LOOK_AHEAD_ROWS))
                self.columns = tuple(dict.fromkeys(n for row in first if isinstance(row, Line) for n in row.values))
                if not first:
                    raise self._empty()
                return itertools.chain(first, rows)
            return self._csv()
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            message = f"`{self.path}` must be a whole {self.format} file; got: {error}"
            raise IngestError(message) from error

    def _csv(self) -> Iterator[Line | Rejected]:
        text = io.TextIOWrapper(self._stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter="\t" if self.format == "tsv" else ",")
        self.columns = tuple(next(reader, ()))
        if not self.columns:
            raise self._empty()
        if len(set(self.columns)) < len(self.columns):
            message = f"`{self.path}` must name each column once in its first line; got {', '.join(self.columns)}"
            raise IngestError(message)
        return self._csv_rows(reader)

    def _csv_rows(self, reader: Any) -> Iterator[Line | Rejected]:  # noqa: ANN401 - csv has no public reader type
        columns, width = self.columns, len(self.columns)
        number = reader.line_num + 1
        for cells in reader:
            if len(cells) == width:
                yield Line(number, {name: cell for name, cell in zip(columns, cells, strict=True) if cell})
            elif cells:
                reason = f"a row must have {width} cells; got {len(cells)}"
                yield Rejected(number, reason, _csv_text(cells))
            number = reader.line_num + 1

    def _ndjson(self) -> Iterator[Line | Rejected]:
        decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
        for number, text in enumerate(self._stream, start=1):
            if not text.strip():
                continue
            try:
                values = decoder.decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                yield Rejected(number, f"a line must be a JSON object; {error}", _shown(text))
                continue
            yield Line(number, values)

    def _parquet(self) -> Iterator[Line | Rejected]:
        stream = self._stream
        if stream is not self._disk:  # Parquet is read from its end, so it has to be whole
            whole = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the rows
            while block := stream.read(_COPY_BYTES):
                whole.write(block)
            whole.seek(0)
            stream = whole
        file = pq.ParquetFile(stream)
        self.columns = tuple(file.schema_arrow.names)
        if file.metadata.num_rows == 0:
            raise self._empty()
        return self._parquet_rows(file)

    def _parquet_rows(self, file: pq.ParquetFile) -> Iterator[Line | Rejected]:
        number = 0
        for batch in file.iter_batches(_PARQUET_ROWS):
            frame = cast("pl.DataFrame", pl.from_arrow(batch))
            for values in frame.iter_rows():
                number += 1
                yield Line(number, {n: v for n, v in zip(frame.columns, values, strict=True) if v is not None})


def _shown(text: bytes) -> str:
    return text.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")


def _csv_text(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
