"""Columns that grow chunk by chunk, in as few bytes as their values need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestration.happenings import DAY_MS, Columns, Flags, Ints, Records, taken

_ALWAYS: dict[str, type[np.generic]] = {"event_time": np.int64, "late": np.bool_}


class Table:
    """Well-formed events, in the order in which they were sent.

    Args:
        types: the columns to keep besides `event_time` and `late`, and the type that holds them.
    """

    def __init__(self, types: Mapping[str, type[np.generic]]) -> None:
        self._types = _ALWAYS | dict(types)
        self._chunks: list[dict[str, NDArray[Any]]] = []

    def add(self, records: Records, late: Flags, wanted: Flags | None = None) -> None:
        """Keep records; those under `wanted`, or all."""
        found: dict[str, NDArray[Any]] = {**records.columns, "event_time": records.event_time, "late": late}
        chosen = slice(None) if wanted is None else np.flatnonzero(wanted)
        self._chunks.append({name: found[name][chosen].astype(kind) for name, kind in self._types.items()})

    def rows(self, *, with_late: bool) -> Columns:
        """All columns, as 64-bit numbers; with the late events or without them."""
        if len(self._chunks) != 1:
            empty = {name: np.empty(0, dtype=kind) for name, kind in self._types.items()}
            chunks = [empty, *self._chunks]
            self._chunks = [{name: np.concatenate([chunk[name] for chunk in chunks]) for name in self._types}]
        (whole,) = self._chunks
        chosen = slice(None) if with_late else ~whole["late"]
        return {name: column[chosen].astype(np.int64) for name, column in whole.items()}


def by_day(columns: Columns, days: Iterable[int]) -> dict[int, Columns]:
    """The rows of each UTC day, by its number since the epoch."""
    day = columns["event_time"] // DAY_MS
    return {number: taken(columns, day == number) for number in days}


def windows(columns: Columns, starts: range, size: int) -> Iterator[tuple[int, Columns]]:
    """The rows of each window `[start, start + size)` that has any; milliseconds since the epoch."""
    at = columns["event_time"]
    near = taken(columns, (at >= starts[0]) & (at < starts[-1] + size))
    for start in starts:
        inside = (near["event_time"] >= start) & (near["event_time"] < start + size)
        if inside.any():
            yield start, taken(near, inside)


def counts(values: Ints, names: Mapping[int, str] | tuple[str, ...]) -> dict[str, int]:
    """How often each value occurs, by its name, in the order of the names' text."""
    found, times = np.unique(values, return_counts=True)
    return dict(sorted((names[value], count) for value, count in zip(found.tolist(), times.tolist(), strict=True)))
