"""What the generator asks of a source: events as columns of whole numbers, one row each, and the truth about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000
ABSENT = -1  # in a column of numbers of things: the event has none

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Columns = Mapping[str, Ints]


@dataclass(frozen=True)
class Happenings:
    """Events as they happen, sorted by `at`.

    Attributes:
        at: milliseconds since the epoch at which the event reaches the log.
        kept: whether the event must come through as it is, because an answer is built on it.
        columns: what the event says, by names of the source's own.
    """

    at: Ints
    kept: Flags
    columns: Columns


@dataclass(frozen=True)
class Records:
    """Records in the order in which they are sent; one row each.

    Attributes:
        at: record timestamp, milliseconds since the epoch, ascending.
        event_time: milliseconds since the epoch; what the event would say, were it readable.
        kind: a `traffic.Kind`.
        number: number of the event; a duplicate has its original's.
        columns: as in `Happenings`.
    """

    at: Ints
    event_time: Ints
    kind: Ints
    number: Ints
    columns: Columns

    def __len__(self) -> int:
        return len(self.at)

    def rows(self, index: NDArray[np.generic]) -> Records:
        """The rows at an index or under a mask."""
        return Records(
            self.at[index], self.event_time[index], self.kind[index], self.number[index], taken(self.columns, index)
        )


class Answers(Protocol):
    """The truth about a source's well-formed events."""

    def add(self, records: Records, late: Flags) -> None:
        """Take note of well-formed events, each of them once; `late` says which are late."""
        ...

    def total(self, *, with_late: bool) -> dict[str, Any]:
        """The answers over all events, as plain values."""
        ...

    def by_day(self, days: Iterable[int], *, with_late: bool) -> dict[int, dict[str, Any]]:
        """The answers over the events of each UTC day, by its number since the epoch."""
        ...


class World(Protocol):
    """A place where things happen that become events of one source."""

    wrong: ClassVar[Mapping[str, str]]
    """A field with a value of a wrong type."""

    def happenings(self, rng: np.random.Generator, start: int, end: int, count: int) -> Happenings:
        """Exactly `count` events within [start, end), both in milliseconds since the epoch."""
        ...

    def events(self, records: Records, ids: Iterator[str]) -> Iterator[tuple[bytes, msgspec.Struct]]:
        """The message key and the event of each record, in order."""
        ...

    def answers(self) -> Answers:
        """An empty truth about this world's events."""
        ...


def taken(columns: Columns, index: slice | NDArray[np.generic]) -> Columns:
    """The rows at an index or under a mask."""
    return {name: column[index] for name, column in columns.items()}


def joined(pieces: Sequence[Columns]) -> Columns:
    """The rows of several columns of the same names, one after the other."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def decimal_text(hundredths: int) -> str:
    """An amount as exact text."""
    sign, size = ("-", -hundredths) if hundredths < 0 else ("", hundredths)
    return f"{sign}{size // 100}.{size % 100:02d}"


def zipf(size: int, exponent: float = 1.0) -> NDArray[np.float64]:
    """Shares of things of which the first are wanted most."""
    weights = 1.0 / np.arange(1, size + 1) ** exponent
    share: NDArray[np.float64] = weights / weights.sum()
    return share
