"""`bench batch-range`: a range of small days in one run of the batch layer, beside a run for each day.

Everything is timed as a user has it, from the start of the command to its end: Python's, Spark's and the JVM's start is
what runs of single days cost above all. The range begins with nothing and makes the index of the log; the single days
find it made. Some of them are run, spread over the range; the others are taken to cost as much as these on average.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

from infra.measure import machine
from infra.settings import Settings
from metrics.disposition import COUNTED, LATE
from metrics.window import DAY_MS
from orchestration.batch_bench.beside import PARTITIONS, filled
from orchestration.batch_bench.systems import DAY, START_MS, ended_well
from speed_layer.bench import table
from speed_layer.bench.backlog import Backlog
from speed_layer.bench.own_source import own_source
from speed_layer.bench.program import Result, report

DAYS, EVENTS, SINGLES = 30, 20_000, 3
"""Days of the range, events of a day, and how many of the days are run by themselves as well."""

RATIO, MOST = "range_to_singles", 0.5
"""What the range may cost at most of what its days cost in runs of their own."""

_MIB = 1 << 20


@dataclass(frozen=True)
class Timed:
    """A run of some days.

    Attributes:
        days: How many.
        seconds: From the start of its process to the end.
        peak_bytes: Greatest resident memory of the process and all that it started, at one moment.
        exact: Whether each day has as many events as it must have.
    """

    days: int
    seconds: float
    peak_bytes: int
    exact: bool


def bench(settings: Settings, shop: Path, events: int = EVENTS, singles: int = SINGLES) -> Result:
    """Fills a topic with days of so many events each, runs all at once and some by themselves."""
    taken_on = machine()
    first = DAY - timedelta(days=DAYS - 1)
    span = (START_MS - (DAYS - 1) * DAY_MS, START_MS + DAY_MS)
    with own_source(settings, shop, {"topic_partitions": PARTITIONS}) as (path, catalog):
        wanted = by_day(filled(settings, catalog, DAYS * events, span))
        whole = timed(settings, path, first, DAY, wanted)
        report(f"{DAYS} days in one run: {whole.seconds:.1f} s")
        alone = []
        for number in sample(DAYS, singles):
            day = first + timedelta(days=number)
            alone.append(timed(settings, path, day, day, wanted))
            report(f"{day} in a run of its own: {alone[-1].seconds:.1f} s")
    return result(taken_on, events, whole, alone)


def sample(days: int, singles: int) -> list[int]:
    """So many of the numbers of days, from 0, spread evenly; all of them at most."""
    chosen = min(days, singles)
    return [(2 * n + 1) * days // (2 * chosen) for n in range(chosen)]


def by_day(backlog: Backlog) -> dict[date, int]:
    """How many events of each day the batch layer must find, late ones included."""
    found: dict[date, int] = {}
    for (at, _), total in backlog.expected(COUNTED, LATE).items():
        day = DAY + timedelta(days=(at - START_MS) // DAY_MS)
        found[day] = found.get(day, 0) + total.events
    return found


def timed(settings: Settings, path: Path, first: date, last: date, wanted: Mapping[date, int]) -> Timed:
    """Runs the days from the first to the last as one command."""
    command = [sys.executable, "-m", "batch_layer", "--catalog", str(path), "--from", str(first), "--to", str(last)]
    ended = ended_well(settings, [*command, "--json"])
    published = json.loads(ended.said)["partitions"]
    found = {date.fromisoformat(each["partition"]): each["events"] for each in published if each["published"]}
    exact = found == {day: number for day, number in wanted.items() if first <= day <= last}
    return Timed(len(found), ended.seconds, ended.peak_bytes["system"], exact)


def result(taken_on: Mapping[str, Any], events: int, whole: Timed, alone: Sequence[Timed]) -> Result:
    """The result as JSON: `ok` if every day of every run was exact and the range does not cost too much."""
    seconds = [each.seconds for each in alone]
    ratio = whole.seconds / (whole.days * mean(seconds))
    missed = [RATIO] if ratio > MOST else []
    runs = [
        {
            "system": f"{whole.days} days in one run",
            "figures": {
                "days": whole.days,
                "events": whole.days * events,
                "seconds": round(whole.seconds, 2),
                "peak_bytes": whole.peak_bytes,
                "exact": whole.exact,
            },
        },
        {
            "system": "a day in a run of its own",
            "figures": {
                "days": 1,
                "events": events,
                "runs": len(alone),
                "seconds": round(mean(seconds), 2),
                "least_s": round(min(seconds), 2),
                "greatest_s": round(max(seconds), 2),
                "peak_bytes": max(each.peak_bytes for each in alone),
                "exact": all(each.exact for each in alone),
            },
        },
    ]
    return {
        "name": "batch-range",
        "machine": dict(taken_on),
        "runs": runs,
        "ratios": {RATIO: round(ratio, 3)},
        "targets": {RATIO: MOST},
        "missed": missed,
        "not_judged": [],
        "ok": not missed and all(run["figures"]["exact"] for run in runs),
    }


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Both kinds of runs, with their start, and the ratio."""
    whole, alone = (run["figures"] for run in result["runs"])
    yield (
        f"{whole['days']} days of {alone['events']:,} events in one run, the index of the log too: "
        f"{whole['seconds']:,.1f} s, {whole['seconds'] / whole['days']:.2f} s a day; {_memory(whole)}"
    )
    yield (
        f"a day in a run of its own: {alone['seconds']:.1f} s, mean of {alone['runs']} "
        f"({alone['least_s']:.1f} to {alone['greatest_s']:.1f}), so {whole['days']} of them: "
        f"{whole['days'] * alone['seconds']:,.0f} s; {_memory(alone)}"
    )
    yield "all from the start of the command to its end, JVM included"
    yield from table.verdicts(result)


def _memory(figures: Mapping[str, Any]) -> str:
    return f"peak memory {figures['peak_bytes'] / _MIB:,.0f} MiB{'' if figures['exact'] else '; NOT EXACT'}"
