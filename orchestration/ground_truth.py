"""What the generator made, counted while it made it: the answers that no layer can read.

Nothing here uses the code of `metrics`; the counts come from the plan of the events, not from their bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from orchestration.happenings import DAY_MS, Answers, Records
from orchestration.traffic import BAD_KINDS, Kind, event_id

DISPOSITION = {
    Kind.NORMAL: "counted",
    Kind.OUT_OF_ORDER: "counted",
    Kind.LATE: "late",
    Kind.DUPLICATE: "duplicate",
    Kind.ID_CONFLICT: "id_conflict",
} | dict.fromkeys((*BAD_KINDS, Kind.TOO_LARGE), "dead_letter")
_READINGS = {"exact": True, "counted": False}
DISPOSITIONS = ("counted", "late", "duplicate", "id_conflict", "dead_letter")


@dataclass
class _Part:
    """The records of a day, or of all days, by what was done to them."""

    kinds: Counter[Kind] = field(default_factory=Counter)

    def document(self, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
        dispositions = dict.fromkeys(DISPOSITIONS, 0)
        for kind, count in self.kinds.items():
            dispositions[DISPOSITION[kind]] += count
        return {
            "records": sum(self.kinds.values()),
            "dispositions": dispositions,
            "kinds": {kind.name.lower(): self.kinds[kind] for kind in Kind},
            **answers,
        }


class GroundTruth:
    """Collects records as they are made and says what must come out.

    A record belongs to the UTC day of its event time; a dead letter to that of its record timestamp. `exact` holds
    the values over every well-formed event once, late ones included; `counted` those without the late ones.
    """

    def __init__(self, run: str, answers: Answers) -> None:
        self._run = run
        self._answers = answers
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
        day = np.where(bad, records.at, records.event_time) // DAY_MS
        for number in np.unique(day).tolist():
            today = day == number
            part = self._days[number]
            for mark, count in enumerate(np.bincount(kind[today], minlength=len(Kind)).tolist()):
                part.kinds[Kind(mark)] += count
                self._total.kinds[Kind(mark)] += count
        exact = np.flatnonzero(counted | (kind == Kind.LATE))
        self._answers.add(records.rows(exact), kind[exact] == Kind.LATE)
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
        days = sorted(self._days)
        total = {name: self._answers.total(with_late=with_late) for name, with_late in _READINGS.items()}
        daily = {name: self._answers.by_day(days, with_late=with_late) for name, with_late in _READINGS.items()}
        return {
            "total": self._total.document(total),
            "by_day": {
                _day_text(day): self._days[day].document({name: answers[day] for name, answers in daily.items()})
                for day in days
            },
            "exceptions": self._exceptions,
        }


def _day_text(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_MS / 1000, UTC).date().isoformat()
