"""What the generator made, counted while it made it: the answers that no layer can read.

Nothing here uses the code of `metrics`; the counts come from the plan of the events, not from their bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from orchestration.shop import COUNTRIES, DAY_MS, EVENT_TYPES, PURCHASE
from orchestration.traffic import BAD_KINDS, Kind, Records, decimal_text, event_id

DISPOSITION = {
    Kind.NORMAL: "counted",
    Kind.OUT_OF_ORDER: "counted",
    Kind.LATE: "late",
    Kind.DUPLICATE: "duplicate",
    Kind.ID_CONFLICT: "id_conflict",
} | dict.fromkeys((*BAD_KINDS, Kind.TOO_LARGE), "dead_letter")
DISPOSITIONS = ("counted", "late", "duplicate", "id_conflict", "dead_letter")


@dataclass
class _Answers:
    """Values over some of the events of a day, or of all days."""

    events: int = 0
    by_type: Counter[str] = field(default_factory=Counter)
    cents_by_country: Counter[str] = field(default_factory=Counter)
    users: set[int] = field(default_factory=set)

    def add(self, records: Records) -> None:
        self.events += len(records)
        for number, count in enumerate(np.bincount(records.event_type, minlength=len(EVENT_TYPES)).tolist()):
            if count:
                self.by_type[EVENT_TYPES[number]] += count
        bought = records.rows(records.event_type == PURCHASE)
        for country in np.unique(bought.country).tolist():
            self.cents_by_country[COUNTRIES[country]] += int(bought.cents[bought.country == country].sum())
        self.users.update(np.unique(records.user).tolist())

    def document(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "events_by_type": dict(sorted(self.by_type.items())),
            "revenue_by_country": {name: decimal_text(cents) for name, cents in sorted(self.cents_by_country.items())},
            "distinct_users": len(self.users),
        }


@dataclass
class _Part:
    """The counts of a day, or of all days."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    exact: _Answers = field(default_factory=_Answers)
    counted: _Answers = field(default_factory=_Answers)

    def document(self) -> dict[str, Any]:
        dispositions = dict.fromkeys(DISPOSITIONS, 0)
        for kind, count in self.kinds.items():
            dispositions[DISPOSITION[kind]] += count
        return {
            "records": sum(self.kinds.values()),
            "dispositions": dispositions,
            "kinds": {kind.name.lower(): self.kinds[kind] for kind in Kind},
            "exact": self.exact.document(),
            "counted": self.counted.document(),
        }


class GroundTruth:
    """Collects records as they are made and says what must come out.

    A record belongs to the UTC day of its event time; a dead letter to that of its record timestamp. `exact` holds
    the values over every well-formed event once, late ones included; `counted` those without the late ones.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._total = _Part()
        self._days: defaultdict[int, _Part] = defaultdict(_Part)
        self._exceptions: list[dict[str, Any]] = []

    def add(self, records: Records) -> list[int]:
        """Takes note of records; returns the indices of those that are exceptions, in order.

        The n-th index belongs to the n-th exception noted by this call; `place` says where it came to lie in the log.
        """
        kind = records.kind
        bad = np.isin(kind, [int(mark) for mark, name in DISPOSITION.items() if name == "dead_letter"])
        counted = (kind == Kind.NORMAL) | (kind == Kind.OUT_OF_ORDER)
        exact = counted | (kind == Kind.LATE)
        day = np.where(bad, records.at, records.event_time) // DAY_MS
        for number in np.unique(day).tolist():
            today = day == number
            part = self._days[number]
            for mark, count in enumerate(np.bincount(kind[today], minlength=len(Kind)).tolist()):
                part.kinds[Kind(mark)] += count
                self._total.kinds[Kind(mark)] += count
            for answers, wanted in (("exact", exact), ("counted", counted)):
                rows = records.rows(today & wanted)
                getattr(part, answers).add(rows)
                getattr(self._total, answers).add(rows)
        uncounted: list[int] = np.flatnonzero(~counted).tolist()
        for index in uncounted:
            mark = Kind(int(kind[index]))
            readable = mark is not Kind.NOT_JSON
            self._exceptions.append(
                {
                    "disposition": DISPOSITION[mark],
                    "kind": mark.name.lower(),
                    "event_id": event_id(self._run, int(records.number[index])) if readable else None,
                    "event_time": int(records.event_time[index]),
                    "record_time": int(records.at[index]),
                    "day": _day_text(int(day[index])),
                    "topic_partition": None,
                    "offset": None,
                }
            )
        return uncounted

    def place(self, exception: int, topic_partition: int, offset: int) -> None:
        """Notes where an exception (numbered from 0 over the whole run) lies in the log."""
        self._exceptions[exception]["topic_partition"] = topic_partition
        self._exceptions[exception]["offset"] = offset

    @property
    def exceptions(self) -> int:
        """Number of exceptions noted so far."""
        return len(self._exceptions)

    def document(self) -> dict[str, Any]:
        """The truth as plain values: `total`, `by_day` (keys `YYYY-MM-DD`) and `exceptions`; times in ms."""
        return {
            "total": self._total.document(),
            "by_day": {_day_text(day): self._days[day].document() for day in sorted(self._days)},
            "exceptions": self._exceptions,
        }


def _day_text(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_MS / 1000, UTC).date().isoformat()
