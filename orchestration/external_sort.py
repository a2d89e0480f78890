"""Sorts more rows than fit in memory: sorted runs on disk, merged as they are read.

Source: Knuth, The Art of Computer Programming, volume 3, 5.4 (external sorting by merging).
"""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

_BLOCK_ROWS = 2_000  # of one run in memory while the runs are merged
_ROW_OVERHEAD_BYTES = 300  # of the objects that hold a row
_LENGTH = struct.Struct("<Q")


class Row(NamedTuple):
    """An event on its way to the log; sorted by arrival, then line.

    Attributes:
        at: arrival, milliseconds since the epoch.
        line: number of the row in its file.
        key: the Kafka message key.
        value: the event's bytes.
        partition: topic partition; -1 lets the key decide.
    """

    at: int
    line: int
    key: bytes | None
    value: bytes
    partition: int


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[Row])


def sorted_rows(rows: Iterable[Row], directory: Path | None = None, memory_bytes: int = 256_000_000) -> Iterator[Row]:
    """All rows by (arrival, line). Reads every row before it yields the first.

    Args:
        rows: in any order.
        directory: where runs are kept meanwhile, when the rows exceed the memory; None: the system's place.
        memory_bytes: about how much memory rows may take.
    """
    with tempfile.TemporaryDirectory(prefix="lockstep-sort-", dir=directory) as scratch:
        runs: list[Path] = []
        held: list[Row] = []
        size = 0
        for row in rows:
            held.append(row)
            size += len(row.value) + _ROW_OVERHEAD_BYTES
            if size >= memory_bytes:
                held.sort()
                runs.append(_write_run(held, Path(scratch) / f"{len(runs)}.run"))
                held, size = [], 0
        held.sort()
        if runs:
            yield from heapq.merge(*map(_read_run, runs), held)
        else:
            yield from held


def _write_run(rows: list[Row], path: Path) -> Path:
    with path.open("wb") as file:
        for first in range(0, len(rows), _BLOCK_ROWS):
            block = _ENCODER.encode(rows[first : first + _BLOCK_ROWS])
            file.write(_LENGTH.pack(len(block)))
            file.write(block)
    return path


def _read_run(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        while block := _next_block(file):
            yield from _DECODER.decode(block)


def _next_block(file: IO[bytes]) -> bytes:
    head = file.read(_LENGTH.size)
    return file.read(_LENGTH.unpack(head)[0]) if head else b""
