"""Alerts: what was raised live beside what a batch run says was due, as precision and recall of each alert and day.

A live alert and one that was due are the same breach when they have the same alert version and key, and their times are
equal or at most the alert's `within` apart; each is matched once, the closest in time first. A level has no `within`:
its times must be equal. Precision is the share of live alerts that were due, recall the share of due ones raised live.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from infra.clickhouse import quote
from metrics.alert import Alert
from metrics.catalog import Catalog
from metrics.disposition import DUPLICATE, ID_CONFLICT, LATE
from metrics.window import Window, to_epoch_ms
from reconciliation.diff import Query
from reconciliation.result import PartitionReconciliation
from serving.alert_tables import ALERTS, BATCH_ALERTS

NOT_YET_CLOSED, UNKNOWN = "not_yet_closed", "unknown"
LARGEST_LIST = 1000
"""Unmatched alerts that a report names per alert, day and side."""


@dataclass(frozen=True)
class Breach:
    """A breach as either layer states it; `key` is its dimensions as sorted pairs."""

    alert_id: str
    key: tuple[tuple[str, str], ...]
    breached_at: datetime
    value: float
    evidence: frozenset[str]


@dataclass(frozen=True)
class Left:
    """An event that the speed layer did not count."""

    event_id: str
    event_time: datetime
    disposition: str


@dataclass(frozen=True)
class AlertDay:
    """One alert on one day.

    Attributes:
        live: How many were raised live.
        due: How many were due; None where no published run of the day knows the alert as it is defined now.
        matched: How many were both; None likewise.
        missed: Those due and not raised, each with a cause.
        false: Those raised and not due, each with a cause.
    """

    alert: str
    partition: date
    live: int
    due: int | None
    matched: int | None
    missed: tuple[tuple[Breach, str], ...]
    false: tuple[tuple[Breach, str], ...]

    @property
    def precision(self) -> float | None:
        """None where nothing was raised, or it is unknown what was due."""
        return (self.live - len(self.false)) / self.live if self.live and self.due is not None else None

    @property
    def recall(self) -> float | None:
        """None where nothing was due."""
        return (self.due - len(self.missed)) / self.due if self.due else None

    @property
    def message(self) -> str:
        """Why nothing is said of precision and recall; empty where they are known."""
        if self.due is not None:
            return ""
        return (
            f"no published run of {self.partition} knows `{self.alert}` as it is defined now, so nothing says which"
            f" alerts were due. run `lockstep batch --from {self.partition} --to {self.partition}`"
        )

    def as_json(self) -> dict[str, Any]:
        """The object of the report."""
        return {
            "alert": self.alert,
            "partition": self.partition.isoformat(),
            "live": self.live,
            "due": self.due,
            "matched": self.matched,
            "precision": self.precision,
            "recall": self.recall,
            "missed": [_unmatched(*one) for one in self.missed[:LARGEST_LIST]],
            "false": [_unmatched(*one) for one in self.false[:LARGEST_LIST]],
            "missed_total": len(self.missed),
            "false_total": len(self.false),
            "message": self.message,
        }


def match(live: Sequence[Breach], due: Sequence[Breach], within: timedelta) -> dict[Breach, Breach]:
    """Pairs live breaches with due ones of the same key, each once, the closest in time first."""
    by_key: dict[tuple[tuple[str, str], ...], list[Breach]] = {}
    for one in sorted(due, key=_time):
        by_key.setdefault(one.key, []).append(one)
    near: list[tuple[timedelta, datetime, datetime, Breach, Breach]] = []
    for raised in live:
        candidates = by_key.get(raised.key, [])
        first = bisect_left(candidates, raised.breached_at - within, key=_time)
        last = bisect_right(candidates, raised.breached_at + within, key=_time)
        for one in candidates[first:last]:
            near.append((abs(raised.breached_at - one.breached_at), raised.breached_at, one.breached_at, raised, one))
    pairs: dict[Breach, Breach] = {}
    taken: set[Breach] = set()
    for *_, raised, one in sorted(near, key=lambda pair: pair[:3]):
        if raised not in pairs and one not in taken:
            pairs[raised] = one
            taken.add(one)
    return pairs


def _time(breach: Breach) -> datetime:
    return breach.breached_at


def cause(breach: Breach, left: Sequence[Left], within: timedelta, open_from: datetime | None) -> str:
    """Why a breach is stated by one layer alone, as far as the events that were not counted tell.

    Args:
        breach: Stated by one layer.
        left: Events of the day and its neighbourhood that the speed layer did not count.
        within: The alert's; an event matters that lies so long before the breach.
        open_from: What happened then or later is not closed; None when nothing is.
    """
    if open_from is None or breach.breached_at >= open_from:
        return NOT_YET_CLOSED
    named = {one.disposition for one in left if one.event_id in breach.evidence}
    since = breach.breached_at - 2 * within
    near = {one.disposition for one in left if since <= one.event_time <= breach.breached_at}
    for found in (named, near):
        for disposition, told in ((LATE, LATE), (DUPLICATE, DUPLICATE), (ID_CONFLICT, DUPLICATE)):
            if disposition in found:
                return told
    return UNKNOWN


def judge(  # noqa: PLR0913, PLR0917 - the facts of one alert and day
    alert: Alert,
    day: date,
    live: Sequence[Breach],
    due: Sequence[Breach] | None,
    left: Sequence[Left],
    open_from: datetime | None,
) -> AlertDay:
    """Judges one alert on one day; breaches of its neighbours may be given, so that pairs across midnight are found.

    Where it is unknown what was due (None), nothing is missed and nothing false.
    """
    within = alert.within or timedelta(0)
    window = Window.of_day(day)
    mine = [one for one in live if window.start <= one.breached_at < window.end]
    if due is None:
        return AlertDay(alert.name, day, live=len(mine), due=None, matched=None, missed=(), false=())
    pairs = match(live, due, within)
    wanted = [one for one in due if window.start <= one.breached_at < window.end]
    met = set(pairs.values())
    # A level's events may lie any time before.
    reach = within or timedelta(days=1)
    return AlertDay(
        alert.name,
        day,
        live=len(mine),
        due=len(wanted),
        matched=sum(one in met for one in wanted),
        missed=tuple((one, cause(one, left, reach, open_from)) for one in wanted if one not in met),
        false=tuple((one, cause(one, left, reach, open_from)) for one in mine if one not in pairs),
    )


def alert_days(
    query: Query, catalog: Catalog, database: str, results: Sequence[PartitionReconciliation]
) -> tuple[AlertDay, ...]:
    """Every alert on every published day; what was due is unknown where no published run knows the alert."""
    found = []
    for result in results if catalog.alerts else ():
        if result.examined is None:
            continue
        ranges = result.examined.manifest.ranges
        open_from = result.progress.open_from(ranges, catalog.allowed_lateness)
        left = _left(query, database, result)
        for alert in catalog.alerts:
            live = _breaches(query, f"{quote(database)}.{quote(ALERTS)} FINAL", alert, result.partition)
            due = _due(query, database, alert, result.partition)
            found.append(judge(alert, result.partition, live, due, left, open_from))
    return tuple(found)


def _due(query: Query, database: str, alert: Alert, day: date) -> list[Breach] | None:
    """What was due, by the last published run of each day that knows this version of the alert; None without one."""
    name = quote(database)
    runs = (
        f"SELECT p.partition AS partition, argMax(p.run_id, p.published_at) AS run_id FROM {name}.publications AS p"
        " WHERE has(p.alert_versions, {version:String}) GROUP BY p.partition"
    )
    known = query(
        f"SELECT count() AS n FROM ({runs}) WHERE partition = toDate({{day:String}})",
        {"version": alert.alert_version, "day": day.isoformat()},
    )
    if not known.item():
        return None
    rows_of = f"(SELECT * FROM {name}.{quote(BATCH_ALERTS)} WHERE (partition, run_id) IN ({runs}))"
    return _breaches(query, rows_of, alert, day)


def _breaches(query: Query, rows_of: str, alert: Alert, day: date) -> list[Breach]:
    """What there is of the day, and around it as far as the alert reaches."""
    window, within = Window.of_day(day), alert.within or timedelta(0)
    rows = query(
        "SELECT alert_id, mapKeys(dims) AS names, mapValues(dims) AS texts, breached_at, value, evidence "
        f"FROM {rows_of} "
        "WHERE alert = {alert:String} AND alert_version = {version:String} "
        "AND toUnixTimestamp64Milli(breached_at) >= {start:Int64} AND toUnixTimestamp64Milli(breached_at) < {end:Int64}"
        " ORDER BY breached_at, alert_id",
        {
            "alert": alert.name,
            "version": alert.alert_version,
            "start": to_epoch_ms(window.start - within),
            "end": to_epoch_ms(window.end + within),
        },
    )
    return [
        Breach(
            row["alert_id"],
            tuple(sorted(zip(row["names"], row["texts"], strict=True))),
            row["breached_at"],
            row["value"],
            frozenset(row["evidence"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def _left(query: Query, database: str, result: PartitionReconciliation) -> list[Left]:
    """Events of the day that its run says the speed layer did not count."""
    assert result.examined is not None
    rows = query(
        f"SELECT event_id, event_time, disposition FROM {quote(database)}.{quote('batch_exceptions')} "
        "WHERE run_id = {run_id:String} AND event_id IS NOT NULL AND event_time IS NOT NULL ORDER BY event_time",
        {"run_id": result.examined.publication.run_id},
    )
    return [Left(**row) for row in rows.iter_rows(named=True)]


def section(days: Sequence[AlertDay]) -> list[dict[str, Any]]:
    """The report's object: each alert and day."""
    return [one.as_json() for one in days]


def _unmatched(breach: Breach, why: str) -> Mapping[str, Any]:
    return {
        "alert_id": breach.alert_id,
        "dims": dict(breach.key),
        "breached_at": breach.breached_at.isoformat().replace("+00:00", "Z"),
        "value": breach.value,
        "cause": why,
    }
