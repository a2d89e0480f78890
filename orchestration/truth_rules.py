"""The rules by which answers follow from events, on plain columns; nothing here uses the code of `metrics`."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from orchestration.happenings import Flags, Ints

Judge = Callable[[Ints, Ints], Flags]
"""Whether a condition holds, by the sum and the number of the events in each window."""


class Breaches(NamedTuple):
    """Where a condition began to hold, and until which event it went on to; times in milliseconds.

    `total` and `events` are the sum and number of the events when it began, of a level what it was then and 1.
    """

    key: Ints
    at: Ints
    total: Ints
    events: Ints
    until: Ints


class Sessions(NamedTuple):
    """Sessions by key and time: the times of the first and the last event (ms), and how many events there are."""

    key: Ints
    first: Ints
    last: Ints
    events: Ints


def quantile(values: Ints, share: str) -> int | None:
    """The value of rank ceil(share * n), from 1, in ascending order; never interpolated. None of no values."""
    if not len(values):
        return None
    exact = Fraction(share) * len(values)
    rank = max(1, -(-exact.numerator // exact.denominator))
    return int(np.partition(values, rank - 1)[rank - 1])


def sessions(key: Ints, at: Ints, gap: int, longest: int) -> Sessions:
    """The sessions of each key.

    Events of a key less than `gap` apart share a session, but an event `longest` or more after the session's first
    begins another one. All in milliseconds.
    """
    if not len(at):
        return Sessions(key, at, at, at)
    order = np.lexsort((at, key))
    key, at = key[order], at[order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(key) != 0) | (np.diff(at) >= gap)]))
    stops = np.append(starts[1:], len(at))
    cuts: list[int] = []
    for chain in np.flatnonzero(at[stops - 1] - at[starts] >= longest).tolist():
        first, stop = int(starts[chain]), int(stops[chain])
        while at[stop - 1] - at[first] >= longest:
            first += int(np.searchsorted(at[first:stop], at[first] + longest))
            cuts.append(first)
    starts = np.sort(np.concatenate([starts, np.array(cuts, dtype=np.int64)]))
    stops = np.append(starts[1:], len(at))
    return Sessions(key[starts], at[starts], at[stops - 1], stops - starts)


def breaches(key: Ints, at: Ints, amount: Ints, within: int, holds: Judge) -> Breaches:
    """Rising edges of a condition over the events of each key in (t - within, t], at the events' times t.

    An edge is a time at which the condition holds though it did not over the events in (t - within, t). A window
    without events meets no condition. Edges are ordered by time, then key.
    """
    order = np.lexsort((at, key))
    key, at, amount = key[order], at[order], amount[order]
    base = at.min() if len(at) else 0
    width = (at.max() if len(at) else 0) - base + within + 1  # so that no window reaches into another key's times
    place = key * width + (at - base + within)
    totals = np.concatenate([[0], np.cumsum(amount)])
    moments, first = np.unique(place, return_index=True)
    stop = np.append(first[1:], len(place))
    low = np.searchsorted(place, moments - within, side="right")
    now, before = stop - low, first - low
    met = holds(totals[stop] - totals[low], now)
    held = holds(totals[first] - totals[low], before) & (before > 0)
    return _edges(key[first], at[first], totals[stop] - totals[low], now, met, held)


def _edges(key: Ints, at: Ints, total: Ints, events: Ints, met: Flags, held: Flags) -> Breaches:
    """The moments, ordered by key and time, at which a condition is met that was not held just before."""
    run = np.cumsum(~(met & held))
    found = Breaches(key, at, total, events, at[np.searchsorted(run, run, side="right") - 1])
    chosen = np.flatnonzero(met & ~held)
    chosen = chosen[np.lexsort((key[chosen], at[chosen]))]
    return Breaches(*(column[chosen] for column in found))


class Levels(NamedTuple):
    """The level of each key after each time at which it had an event, ordered by key and time."""

    key: Ints
    at: Ints
    level: Ints

    def last(self) -> dict[int, int]:
        """The last level of each key."""
        return dict(zip(self.key.tolist(), self.level.tolist(), strict=True))

    def falls_below(self, limit: int) -> Breaches:
        """The times at which a level came to lie below a limit, ordered by time, then key."""
        below = self.level < limit
        held = np.zeros_like(below)
        held[1:] = below[:-1] & (np.diff(self.key) == 0)
        return _edges(self.key, self.at, self.level, np.ones_like(self.level), below, held)


def levels(key: Ints, at: Ints, counted: Ints, change: Ints) -> Levels:
    """What there is of each key: the last count, plus the changes since, those of its very millisecond among them.

    Args:
        key: of each event.
        at: its time, in milliseconds.
        counted: what was counted; negative where nothing was. Of counts at one time the greatest holds.
        change: what came (or, negative, went).
    """
    order = np.lexsort((at, key))
    key, at, counted, change = key[order], at[order], counted[order], change[order]
    if not len(at):
        return Levels(key, at, change)
    first = np.flatnonzero(np.concatenate([[True], (np.diff(key) != 0) | (np.diff(at) != 0)]))
    key, at = key[first], at[first]
    change, counted = np.add.reduceat(change, first), np.maximum.reduceat(counted, first)
    new_key = np.concatenate([[True], np.diff(key) != 0])
    anchor = np.maximum.accumulate(np.where(new_key | (counted >= 0), np.arange(len(key)), 0))
    changes = np.cumsum(change)
    return Levels(key, at, np.maximum(counted, 0)[anchor] + changes - (changes - change)[anchor])
