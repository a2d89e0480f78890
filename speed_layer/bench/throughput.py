"""Throughput: jobs A and B of the speed layer beside comparators, by turns, and what the medians come to.

Every system reads the same backlog in the same topic. A round runs each system once, each round beginning with another
one; rounds before the first warm the JVMs up and are thrown away. Runs are noted in a file as they end, from which an
interrupted bench goes on.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from speed_layer.bench.run import Run

EVENTS = 4_000_000
RUNS = 5

A, B = "a", "b"
PER_ELEMENT, PER_ELEMENT_PLAIN = "per_element", "per_element_plain"
FLINK_SQL, FLINK_SQL_PLAIN = "flink_sql", "flink_sql_plain"
CEILING = "ceiling"

TITLES = {
    A: "job A: speed layer",
    B: "job B: speed layer, the shop's ten heaviest metrics",
    PER_ELEMENT: "job A: Beam, one element per event",
    PER_ELEMENT_PLAIN: "job A: Beam, one element per event, copies not dropped",
    FLINK_SQL: "job A: Flink SQL",
    FLINK_SQL_PLAIN: "job A: Flink SQL, copies not dropped",
    CEILING: "decode ceiling: consume, decode, group, no engine",
}
"""The systems, in the order in which they run."""

WARMED_UP = (A, FLINK_SQL, FLINK_SQL_PLAIN)
"""Systems with a JVM that stays up; the job server's is warm for every Beam job once it has run one."""

SHORT_EVENTS = 50_000
"""Events at most for systems whose rate is low."""


@dataclass(frozen=True)
class Target:
    """A system's rate must be at least `least` times another's."""

    system: str
    other: str
    least: float


TARGETS = {
    "a_to_per_element": Target(A, PER_ELEMENT, 20.0),
    "a_to_flink_sql": Target(A, FLINK_SQL, 1.0),
    "a_to_ceiling": Target(A, CEILING, 0.7),
    "b_to_a": Target(B, A, 1 / 3),
}

Figures = Mapping[str, Any]
"""What `Run.figures` gives."""


def rounds(systems: Sequence[str], runs: int) -> list[tuple[int, str]]:
    """Which system runs when: number of the round, from 1, or 0 for what is thrown away, and system."""
    warm_up = [(0, system) for system in systems if system in WARMED_UP]
    turns = [
        (number + 1, system)
        for number in range(runs)
        for system in (*systems[number % len(systems) :], *systems[: number % len(systems)])
    ]
    return warm_up + turns


def medians(runs: Sequence[Figures]) -> dict[str, Any]:
    """The median of every figure over runs of a system; exact only if every run was."""
    rates = [run["events_per_s"] for run in runs]
    return {
        **_median(runs),
        "exact": all(run["exact"] for run in runs),
        "runs": len(runs),
        "least_events_per_s": min(rates),
        "greatest_events_per_s": max(rates),
    }


def _median(values: Sequence[Any]) -> Any:  # noqa: ANN401 - of numbers a number, of mappings a mapping
    if isinstance(values[0], Mapping):
        return {name: _median([value[name] for value in values]) for name in values[0]}
    return median(values)


def ratios(rates: Mapping[str, float], targets: Mapping[str, Target] = TARGETS) -> dict[str, float]:
    """The ratios of the targets whose two systems ran."""
    return {
        name: rates[target.system] / rates[target.other]
        for name, target in targets.items()
        if {target.system, target.other} <= rates.keys()
    }


def missed(found: Mapping[str, float], targets: Mapping[str, Target] = TARGETS) -> list[str]:
    """The names of ratios that are below their targets."""
    return [name for name, ratio in found.items() if ratio < targets[name].least]


def result(
    machine: Mapping[str, Any],
    runs: Mapping[str, Sequence[Figures]],
    *,
    name: str = "speed",
    titles: Mapping[str, str] = TITLES,
    targets: Mapping[str, Target] = TARGETS,
) -> dict[str, Any]:
    """The result as JSON: `ok` if every run of every system was exact and no ratio misses its target.

    A ratio one of whose systems did not run is among neither `ratios` nor `missed`, but `not_judged`.
    """
    figures = {system: medians(done) for system, done in runs.items()}
    found = ratios({system: one["events_per_s"] for system, one in figures.items()}, targets)
    return {
        "name": name,
        "machine": dict(machine),
        "runs": [{"system": titles[system], "key": system, "figures": one} for system, one in figures.items()],
        "ratios": {name: round(ratio, 3) for name, ratio in found.items()},
        "targets": {name: round(target.least, 3) for name, target in targets.items()},
        "missed": missed(found, targets),
        "not_judged": [name for name in targets if name not in found],
        "ok": all(one["exact"] for one in figures.values()) and not missed(found, targets),
    }


def measure(
    systems: Mapping[str, Callable[[], Run]],
    runs: int,
    notes: Path,
    report: Callable[[str], None],
    *,
    resume: bool = False,
    titles: Mapping[str, str] = TITLES,
) -> dict[str, list[Figures]]:
    """Runs the systems by turns; gives the figures of every run that counts.

    Args:
        systems: What runs a system, by name.
        runs: How often each runs.
        notes: A line per finished run.
        report: Told how each run ended.
        resume: Whether runs that the notes have already are not repeated; else the notes begin anew.
        titles: What the systems are called in reports.
    """
    done = _noted(notes) if resume else {}
    notes.parent.mkdir(parents=True, exist_ok=True)
    plan = rounds(list(systems), runs)
    with notes.open("a" if resume else "w") as file:
        for position, (number, system) in enumerate(plan, 1):
            if (number, system) in done:
                continue
            figures = systems[system]().figures()
            report(f"{position}/{len(plan)} {titles[system]}: {_line(figures)}{'' if number else '; warm-up'}")
            if number:
                done[number, system] = figures
                file.write(json.dumps({"round": number, "system": system, "figures": figures}) + "\n")
                file.flush()
    return {system: [done[number, system] for number in range(1, runs + 1)] for system in systems}


def _noted(notes: Path) -> dict[tuple[int, str], Figures]:
    lines = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    return {(line["round"], line["system"]): line["figures"] for line in lines}


def _line(figures: Figures) -> str:
    exact = "exact" if figures["exact"] else "NOT EXACT"
    return f"{figures['events_per_s']:,} events/s, {figures['seconds']:.1f} of {figures['whole_s']:.1f} s, {exact}"
