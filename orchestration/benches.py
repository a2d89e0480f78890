"""The benches: what each measures, by which program on which engines, what it may be told, how its result is shown."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.service import Service
from infra.settings import Settings
from orchestration import bench_plots, services
from orchestration.batch_bench import beside, days, growth, systems
from speed_layer.bench import text, throughput

Result = Mapping[str, Any]
Lines = Callable[[Result], Iterable[str]]

_SPEED, _BATCH = "speed_layer.bench", "orchestration.batch_bench"


@dataclass(frozen=True)
class Bench:
    """A bench.

    Attributes:
        what: It measures.
        program: The module that is run with the bench's name; none where no engine is needed.
        services: The engines.
        options: What it may be told, with the value that it has if nothing is said, for people.
        systems: What `--only` may name.
        lines: Its result as lines of text; after a table of systems, what the table leaves out.
        is_table: Whether its result is a table of systems with the ratios that must be met.
        drawing: The name of a file, and what draws the result into it.
    """

    what: str
    program: str = ""
    services: Callable[[Settings], list[Service]] = services.engines
    options: Mapping[str, str] = field(default_factory=dict)
    systems: Mapping[str, str] = field(default_factory=dict)
    lines: Lines = lambda _: ()
    is_table: bool = False
    drawing: tuple[str, Callable[[Result], str]] | None = None


BENCHES = {
    "speed": Bench(
        "events a second that the speed layer drains from a backlog into ClickHouse, beside other systems",
        _SPEED,
        options={
            "events": f"in the backlog, {throughput.EVENTS:,}",
            "runs": f"of each system, {throughput.RUNS}",
            "only": "all",
            "resume": "",
            "profile": "",
        },
        systems=throughput.TITLES,
        is_table=True,
    ),
    "freshness": Bench(
        "time from an event to the first query that shows it, and to an alert, at 20,000 events a second",
        _SPEED,
        lines=text.freshness,
        drawing=("freshness.svg", bench_plots.freshness),
    ),
    "growth": Bench(
        "throughput, memory and state by the number of dimension values and of partitions",
        _SPEED,
        lines=text.growth,
        drawing=("growth.svg", bench_plots.growth),
    ),
    "backpressure": Bench(
        "memory while ClickHouse is away at full rate, and how fast what was held up is published then",
        _SPEED,
        options={"outage": "300"},
        lines=text.backpressure,
    ),
    "batch": Bench(
        "events a second of a day that the batch layer recomputes, beside a plain Spark job and polars",
        _BATCH,
        services.stores,
        options={
            "events": f"of the day, {beside.EVENTS:,}",
            "runs": f"of each system, {beside.RUNS}",
            "only": "all",
            "resume": "",
        },
        systems=systems.TITLES,
        lines=beside.notes,
        is_table=True,
    ),
    "batch-range": Bench(
        f"seconds of {days.DAYS} small days in one run of the batch layer, beside a run for each",
        _BATCH,
        services.stores,
        options={"events": f"of each day, {days.EVENTS:,}", "runs": f"of single days, {days.SINGLES}"},
        lines=days.lines,
    ),
    "batch-growth": Bench(
        "time, processor time and memory of the batch layer by the number of events of a day",
        _BATCH,
        services.stores,
        options={"events": f"of the greatest day, {growth.EVENTS:,}"},
        lines=growth.lines,
        drawing=("batch.svg", bench_plots.batch_growth),
    ),
    "sketches": Bench("error and size of the sketches beside Apache DataSketches"),
}


def taking(option: str) -> list[str]:
    """The names of the benches that may be told an option."""
    return [name for name, bench in BENCHES.items() if option in bench.options]


def refusal(name: str, given: Mapping[str, object]) -> str | None:
    """Why a bench cannot be run with options of these values, those left out being None or false; None if it can.

    Args:
        name: Of the bench.
        given: Values by option; of `only` a list.
    """
    if name not in BENCHES:
        return f"there is no bench `{name}`. there are: {', '.join(BENCHES)}"
    bench = BENCHES[name]
    for option, value in given.items():
        if value is None or value is False or option in bench.options:
            continue
        told = f"--{option}" if value is True else f"--{option} {_told(value)}"
        takers = ", ".join(f"`bench {taker}`" for taker in taking(option))
        return f"only {takers} may be told --{option}; got {told} for `{name}`. leave it out"
    chosen = given.get("only")
    unknown = sorted({*chosen} - bench.systems.keys()) if isinstance(chosen, list) else []
    if unknown:
        return f"there is no system `{unknown[0]}` in `bench {name}`. there are: {', '.join(bench.systems)}"
    return None


def words(given: Mapping[str, object]) -> list[str]:
    """Options as the words of a command line, without those left out."""
    found = []
    for option, value in given.items():
        if value is True:
            found.append(f"--{option}")
        elif value is not None and value is not False:
            for each in value if isinstance(value, list) else [value]:
                found += [f"--{option}", str(each)]
    return found


def _told(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
