"""Which stale days are to be computed now: whole ranges, no more in an hour than is allowed, and none twice."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from batch_layer.stale import StaleDay

DAYS_PER_HOUR = 30
_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Asked:
    """What a sensor remembers: when days were asked for, and by what each was stale then.

    Attributes:
        times: When, a moment for each day asked for within the last hour.
        seen: By day, the `StaleDay.why` for which it was last asked for.
    """

    times: tuple[datetime, ...] = ()
    seen: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "Asked":
        """From what `as_cursor` gave; nothing of what it cannot read."""
        if not cursor:
            return cls()
        known = json.loads(cursor)
        times = tuple(datetime.fromisoformat(each) for each in known["times"])
        return cls(times, tuple((day, why) for day, why in known["seen"]))

    def as_cursor(self) -> str:
        """As Dagster keeps it."""
        return json.dumps({"times": [each.isoformat() for each in self.times], "seen": [*self.seen]})


@dataclass(frozen=True)
class Decision:
    """What to ask for.

    Attributes:
        ranges: First and last day of each, in order.
        asked: What to remember.
        waiting: How many days have to wait for the next hour.
    """

    ranges: tuple[tuple[date, date], ...]
    asked: Asked
    waiting: int


def decide(stale: Sequence[StaleDay], asked: Asked, now: datetime, most: int = DAYS_PER_HOUR) -> Decision:
    """What of the stale days is to be asked for now.

    A day that was asked for is not asked for again while it is stale by the same: its run failed, or has yet to begin.

    Args:
        stale: Closed days that are stale, in order.
        asked: What was asked for before.
        now: The time.
        most: Days per hour.
    """
    recent = tuple(moment for moment in asked.times if now - moment < _HOUR)
    seen = dict(asked.seen)
    due = [one for one in stale if seen.get(str(one.day)) != one.why]
    taken = due[: max(0, most - len(recent))]
    left = {str(one.day) for one in stale}
    remembered = {day: why for day, why in seen.items() if day in left} | {str(one.day): one.why for one in taken}
    return Decision(
        tuple(ranges([one.day for one in taken])),
        Asked(recent + (now,) * len(taken), tuple(sorted(remembered.items()))),
        len(due) - len(taken),
    )


def ranges(days: Sequence[date]) -> list[tuple[date, date]]:
    """Ascending days as ranges without gaps, both ends included."""
    found: list[tuple[date, date]] = []
    for day in days:
        if found and day - found[-1][1] == timedelta(days=1):
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found
